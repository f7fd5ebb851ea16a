//! Compiled kernels, one of each per context.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::{Access, Kernel};
use crate::error::{Error, Result};
use crate::scope::{self, Caught};

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

    fn new(device: &wgpu::Device, kernel: Kernel) -> Result<Self> {
        scope::catch(device, || Self::create(device, kernel)).map_err(|caught| Error::Validation {
            label: kernel.name().to_owned(),
            reason: match caught {
                Caught::OutOfMemory => "no memory to compile it".to_owned(),
                Caught::Refused(reason) => reason,
            },
        })
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that creates pipelines"
    )]
    fn create(device: &wgpu::Device, kernel: Kernel) -> Self {
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
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label,
            source: wgpu::ShaderSource::Wgsl(kernel.source().into()),
        });
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
            cache: None,
        });
        Self {
            kernel,
            compute,
            layout,
        }
    }
}

/// Locked while its kernel is compiled; stays empty when that failed, so that the next call tries again.
type Slot = Arc<Mutex<Option<Arc<Pipeline>>>>;

/// Compiles kernels on first use; a second thread that wants the same kernel waits for the first.
#[derive(Debug, Default)]
pub(crate) struct Pipelines {
    slots: Mutex<HashMap<Kernel, Slot>>,
}

impl Pipelines {
    pub fn get(&self, device: &wgpu::Device, kernel: Kernel) -> Result<Arc<Pipeline>> {
        let slot = {
            let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            slots.entry(kernel).or_default().clone()
        };
        let mut compiled = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pipeline) = &*compiled {
            return Ok(pipeline.clone());
        }
        let pipeline = Arc::new(Pipeline::new(device, kernel)?);
        *compiled = Some(pipeline.clone());
        Ok(pipeline)
    }
}
