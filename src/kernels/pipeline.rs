//! Compiled kernels, each once per context, and the driver's pipeline cache.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::{Access, Kernel, Shader};
use crate::error::{Error, Result};
use crate::scope::{self, Caught};
use crate::watch::DeviceWatch;

/// A compiled kernel with the layout of its bindings.
#[derive(Debug)]
pub(crate) struct Pipeline {
    kernel: Kernel,
    compute: wgpu::ComputePipeline,
    layout: wgpu::BindGroupLayout,
}

impl Pipeline {
    pub fn label(&self) -> &'static str {
        self.kernel.name()
    }

    pub fn compute(&self) -> &wgpu::ComputePipeline {
        &self.compute
    }

    pub fn bind_group_layout(&self) -> &wgpu::BindGroupLayout {
        &self.layout
    }

    pub fn params_bytes(&self) -> u64 {
        self.kernel.params_bytes()
    }

    fn new(watch: &DeviceWatch, kernel: Kernel, how: &Compiler) -> Result<Self> {
        let shader = kernel.shader()?;
        shader.dump(&kernel.key());
        let create = || Self::create(watch.device(), kernel, &shader, how);
        scope::catch(watch, create).map_err(|caught| {
            let reason = match caught {
                Caught::Lost(reason) => return Error::DeviceLost { reason },
                Caught::OutOfMemory => "no memory to compile it".to_owned(),
                Caught::Refused(reason) => shader.with_origins(&reason),
            };
            let label = kernel.name().into();
            Error::Validation { label, reason }
        })
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that creates pipelines"
    )]
    fn create(device: &wgpu::Device, kernel: Kernel, shader: &Shader, how: &Compiler) -> Self {
        let label = Some(kernel.name());
        let uniform = wgpu::BindGroupLayoutEntry {
            binding: 0,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer {
                ty: wgpu::BufferBindingType::Uniform,
                has_dynamic_offset: true,
                min_binding_size: wgpu::BufferSize::new(kernel.params_bytes()),
            },
            count: None,
        };
        let storage =
            (1..)
                .zip(kernel.bindings())
                .map(|(binding, access)| wgpu::BindGroupLayoutEntry {
                    binding,
                    visibility: wgpu::ShaderStages::COMPUTE,
                    ty: wgpu::BindingType::Buffer {
                        ty: wgpu::BufferBindingType::Storage {
                            read_only: *access == Access::Read,
                        },
                        has_dynamic_offset: false,
                        min_binding_size: None,
                    },
                    count: None,
                });
        let entries: Vec<_> = std::iter::once(uniform).chain(storage).collect();
        let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label,
            entries: &entries,
        });
        let module = how.module(device, label, shader);
        let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label,
            bind_group_layouts: &[Some(&layout)],
            immediate_size: 0,
        });
        let compute = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label,
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some(kernel.name()),
            compilation_options: wgpu::PipelineCompilationOptions {
                // Every kernel writes its workgroup memory before reading it.
                zero_initialize_workgroup_memory: false,
                ..Default::default()
            },
            cache: how.cache.as_ref(),
        });
        Self {
            kernel,
            compute,
            layout,
        }
    }
}

/// How shaders are compiled.
#[derive(Debug, Default)]
pub(crate) struct Compiler {
    /// Leaves out the run-time checks that wgpu adds to shaders.
    pub trusted: bool,
    /// The driver's cache of compiled shaders; `None` where the backend has none.
    pub cache: Option<wgpu::PipelineCache>,
}

impl Compiler {
    fn module(
        &self,
        device: &wgpu::Device,
        label: wgpu::Label<'_>,
        shader: &Shader,
    ) -> wgpu::ShaderModule {
        let descriptor = wgpu::ShaderModuleDescriptor {
            label,
            source: wgpu::ShaderSource::Wgsl((&*shader.text).into()),
        };
        if !self.trusted {
            return device.create_shader_module(descriptor);
        }
        // Divisions stay checked: leaving that check out gains nothing.
        let checks = wgpu::ShaderRuntimeChecks {
            bounds_checks: false,
            force_loop_bounding: false,
            ..wgpu::ShaderRuntimeChecks::checked()
        };
        // SAFETY: the shader must not index out of bounds, nor loop for ever. Every shader is one of this crate's own, and
        // every dispatch of it is recorded by this crate: parameters and bound ranges come from plans, which compute both from
        // the same checked shapes (`Recorder::dispatch` is not public). Each index into a binding or an array is below the
        // row, key, column or element counts of those parameters, or replaced by one that is; ids that come as data are
        // checked on the host and again in the shader. Each loop counts up to one of those numbers or to a constant. A
        // driver's own checks of storage buffers, where it has them, stay. The tests compare every kernel with a reference
        // both ways.
        #[expect(unsafe_code, reason = "the only way to compile without checks")]
        unsafe {
            device.create_shader_module_trusted(descriptor, checks)
        }
    }
}

/// The driver's pipeline cache, filled with `data` of an earlier process. `None` where the device has no such cache.
///
/// `data` must be bytes that [`wgpu::PipelineCache::get_data`] returned. The caller keeps a checksum to make sure.
pub(crate) fn pipeline_cache(
    watch: &DeviceWatch,
    data: Option<&[u8]>,
) -> Option<wgpu::PipelineCache> {
    let device = watch.device();
    if !device.features().contains(wgpu::Features::PIPELINE_CACHE) {
        return None;
    }
    let create = || {
        let descriptor = wgpu::PipelineCacheDescriptor {
            label: Some("dilated-attention"),
            data,
            fallback: true,
        };
        // SAFETY: `data` must have been returned by `get_data`. It comes from a file in the user's own cache folder, written by
        // this crate, whole (renamed into place) and with a checksum over all of it, so that damage is noticed; wgpu checks
        // backend, adapter, driver version and length, and the driver its own header. Whoever can forge such a file can write
        // to the user's files anyway.
        #[expect(unsafe_code, reason = "the only way to make a pipeline cache")]
        unsafe {
            device.create_pipeline_cache(&descriptor)
        }
    };
    // Without the cache, shaders compile more slowly: not an error.
    scope::catch(watch, create).ok()
}

/// Place for one compiled kernel. Locked while the kernel is compiled; empty after a failure, so that the next call tries again.
type Slot = Arc<Mutex<Option<Arc<Pipeline>>>>;

/// Compiles kernels on first use. Threads that want the same kernel wait for one of them to compile it; other threads do not wait.
#[derive(Debug, Default)]
pub(crate) struct Pipelines {
    compiler: Compiler,
    slots: Mutex<HashMap<Kernel, Slot>>,
}

impl Pipelines {
    pub fn new(compiler: Compiler) -> Self {
        Self {
            compiler,
            slots: Mutex::default(),
        }
    }

    /// The bytes of the driver's pipeline cache, to be kept for a later process.
    pub fn cached_data(&self, watch: &DeviceWatch) -> Option<Vec<u8>> {
        let cache = self.compiler.cache.as_ref()?;
        watch.guard(|| cache.get_data()).ok()?
    }

    pub fn get(&self, watch: &DeviceWatch, kernel: Kernel) -> Result<Arc<Pipeline>> {
        let slot = {
            let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            slots.entry(kernel).or_default().clone()
        };
        let mut compiled = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pipeline) = &*compiled {
            return Ok(pipeline.clone());
        }
        let pipeline = Arc::new(Pipeline::new(watch, kernel, &self.compiler)?);
        *compiled = Some(pipeline.clone());
        Ok(pipeline)
    }
}
