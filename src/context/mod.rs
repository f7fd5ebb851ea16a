//! A device with its queue, its pool and its compiled kernels.
//!
//! A [`Context`] either owns its device ([`Context::new`], [`Context::headless`]) or borrows the one an application draws
//! with ([`Context::from_device`]); both are the same type afterwards. On a borrowed device nothing global is installed: no
//! error handler, no device-lost callback (the application's own should call
//! [`Pool::device_lost`](crate::pool::Pool::device_lost)). Errors are caught by scopes around this library's own calls.

mod planner;
mod trial;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use crate::error::{Error, Result};
use crate::kernel::{Kernel, Pipeline, Pipelines, Storage};
use crate::plan::{CooperativeMatrix, DeviceFacts, NoCooperativeMatrix};
use crate::pool::{Pool, PoolOptions};
use crate::recorder::Recorder;

/// Which adapter to use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AdapterChoice {
    /// The one whose name contains the value of `WGPU_ADAPTER_NAME` if that is set, else the one wgpu prefers under
    /// `WGPU_POWER_PREF` (high performance if unset). `WGPU_BACKEND` limits the backends in any case.
    #[default]
    Environment,
    /// The one wgpu prefers.
    Power(wgpu::PowerPreference),
    /// The first whose name contains this text, in any case.
    Named(String),
    /// A software adapter.
    Software,
}

/// What an own device is asked for.
#[derive(Clone, Debug, Default)]
pub struct ContextOptions {
    /// Which adapter.
    pub adapter: AdapterChoice,
    /// Limits of the device; `None` for [`Context::recommended_limits`] of the adapter.
    pub limits: Option<wgpu::Limits>,
    /// How the pool behaves.
    pub pool: PoolOptions,
    /// Leave cooperative matrices out, an experimental feature of wgpu that is asked for where the adapter has a usable one.
    pub without_cooperative_matrices: bool,
}

/// A device ready to compute. Clones share it.
#[derive(Clone, Debug)]
pub struct Context {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    device: wgpu::Device,
    queue: wgpu::Queue,
    info: wgpu::AdapterInfo,
    facts: DeviceFacts,
    /// The facts after the trial of the cooperative matrices.
    tried_facts: OnceLock<DeviceFacts>,
    pool: Pool,
    pipelines: Pipelines,
    check_finite: AtomicBool,
    /// Recordings are counted, not run.
    plans_only: bool,
}

impl Context {
    /// Opens a device on the default adapter with recommended limits.
    ///
    /// # Errors
    /// [`Error::NoAdapter`], [`Error::NoDevice`], [`Error::DeviceTooSmall`].
    pub async fn new() -> Result<Self> {
        Self::with_options(&ContextOptions::default()).await
    }

    /// As [`new`](Self::new), blocking.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    #[cfg(not(target_arch = "wasm32"))]
    pub fn headless() -> Result<Self> {
        pollster::block_on(Self::new())
    }

    /// Opens a device as `options` say.
    ///
    /// # Errors
    /// [`Error::NoAdapter`] when no adapter matches, [`Error::NoDevice`] when it refuses the limits,
    /// [`Error::DeviceTooSmall`] when they are below WebGPU's defaults in a way that kernels need.
    pub async fn with_options(options: &ContextOptions) -> Result<Self> {
        let instance = new_instance();
        let adapter = choose_adapter(&instance, &options.adapter).await?;
        let limits = options
            .limits
            .clone()
            .unwrap_or_else(|| Self::recommended_limits(&adapter));
        let mut features = Self::recommended_features(&adapter);
        if !options.without_cooperative_matrices {
            features |= Self::cooperative_features(&adapter);
        }
        let (device, queue) = adapter
            .request_device(&wgpu::DeviceDescriptor {
                label: Some("dilated-attention"),
                required_features: features,
                experimental_features: experimental_features(features),
                required_limits: limits,
                memory_hints: wgpu::MemoryHints::Performance,
                ..Default::default()
            })
            .await
            .map_err(|error| Error::NoDevice {
                adapter: adapter.get_info().name,
                reason: error.to_string(),
            })?;
        let pool = Pool::new(&device, options.pool.clone());
        let matrices = adapter.cooperative_matrix_properties();
        let context = Self::assemble(device, queue, pool, &matrices)?;
        context.watch_own_device();
        Ok(context)
    }

    /// Lets the pool know when the device is lost. wgpu itself goes on to hand out buffers then, which nothing can use.
    #[expect(clippy::disallowed_methods, reason = "the device is the context's own")]
    fn watch_own_device(&self) {
        let lost = self.pool().on_device_lost();
        self.device()
            .set_device_lost_callback(move |reason, message| {
                lost(format!("{reason:?}: {message}"));
            });
    }

    /// Uses a device that the application has. Submissions go to `queue`; whoever else submits there orders its work by
    /// the order of submission.
    ///
    /// A device with the features of [`cooperative_features`](Self::cooperative_features) uses cooperative matrices, like one
    /// of the context's own.
    ///
    /// # Errors
    /// [`Error::DeviceTooSmall`] when its limits are below what kernels need.
    pub fn from_device(device: wgpu::Device, queue: wgpu::Queue) -> Result<Self> {
        Self::from_device_with(device, queue, PoolOptions::default())
    }

    /// As [`from_device`](Self::from_device), with pool options.
    ///
    /// # Errors
    /// As [`from_device`](Self::from_device).
    pub fn from_device_with(
        device: wgpu::Device,
        queue: wgpu::Queue,
        pool: PoolOptions,
    ) -> Result<Self> {
        let pool = Pool::new(&device, pool);
        Self::from_device_and_pool(device, queue, pool)
    }

    /// As [`from_device`](Self::from_device), with a pool of the caller's, for example one over a
    /// [`BufferSource`](crate::pool::BufferSource) of its own. The pool's buffers must be buffers of `device`; nothing checks
    /// that before wgpu does. Contexts that share a pool accept each other's tensors.
    ///
    /// # Errors
    /// As [`from_device`](Self::from_device).
    pub fn from_device_and_pool(
        device: wgpu::Device,
        queue: wgpu::Queue,
        pool: Pool,
    ) -> Result<Self> {
        let matrices = match device.features().contains(CooperativeMatrix::FEATURES) {
            true => matrices_of(&device.adapter_info()),
            false => Vec::new(),
        };
        Self::assemble(device, queue, pool, &matrices)
    }

    fn assemble(
        device: wgpu::Device,
        queue: wgpu::Queue,
        pool: Pool,
        matrices: &[wgpu::CooperativeMatrixProperties],
    ) -> Result<Self> {
        let info = device.adapter_info();
        let facts = DeviceFacts::new(&info, &device.limits(), device.features(), matrices)?;
        Ok(Self {
            inner: Arc::new(Inner {
                info,
                facts,
                tried_facts: OnceLock::new(),
                pool,
                pipelines: Pipelines::default(),
                check_finite: AtomicBool::new(false),
                plans_only: false,
                device,
                queue,
            }),
        })
    }

    /// Features worth requesting from `adapter` for this library, those of them that it has:
    /// [`SHADER_F16`](wgpu::Features::SHADER_F16). None is required: every kernel runs within WebGPU's defaults.
    pub fn recommended_features(adapter: &wgpu::Adapter) -> wgpu::Features {
        adapter.features() & wgpu::Features::SHADER_F16
    }

    /// Features for cooperative matrices worth requesting from `adapter`; none where it has no usable ones. They are
    /// experimental: an application that makes its own device must also set
    /// [`wgpu::DeviceDescriptor::experimental_features`].
    pub fn cooperative_features(adapter: &wgpu::Adapter) -> wgpu::Features {
        let matrices = adapter.cooperative_matrix_properties();
        match CooperativeMatrix::of(&adapter.get_info(), adapter.features(), &matrices) {
            Ok(_) => CooperativeMatrix::FEATURES,
            Err(_) => wgpu::Features::empty(),
        }
    }

    /// Limits worth requesting from `adapter` for this library: its own for sizes of buffers, bindings and workgroup
    /// memory (long sequences need fewer windows), WebGPU's defaults for the rest.
    pub fn recommended_limits(adapter: &wgpu::Adapter) -> wgpu::Limits {
        let own = adapter.limits();
        wgpu::Limits {
            max_buffer_size: own.max_buffer_size,
            max_storage_buffer_binding_size: own.max_storage_buffer_binding_size,
            max_compute_workgroup_storage_size: own.max_compute_workgroup_storage_size,
            min_storage_buffer_offset_alignment: own.min_storage_buffer_offset_alignment,
            ..wgpu::Limits::default()
        }
    }

    /// What adapters there are, under `WGPU_BACKEND`.
    pub async fn adapters() -> Vec<wgpu::AdapterInfo> {
        new_instance()
            .enumerate_adapters(wgpu::Backends::all())
            .await
            .iter()
            .map(wgpu::Adapter::get_info)
            .collect()
    }

    /// Starts to record work under `label`. Recordings are independent; several may be open, on several threads.
    pub fn recorder(&self, label: &'static str) -> Recorder {
        Recorder::new(self.clone(), label)
    }

    /// The pool that every buffer of this context comes from.
    pub fn pool(&self) -> &Pool {
        &self.inner.pool
    }

    /// The device.
    pub fn device(&self) -> &wgpu::Device {
        &self.inner.device
    }

    /// The queue.
    pub fn queue(&self) -> &wgpu::Queue {
        &self.inner.queue
    }

    /// What is known of the adapter.
    pub fn adapter_info(&self) -> &wgpu::AdapterInfo {
        &self.inner.info
    }

    /// What plans are made from.
    pub fn facts(&self) -> &DeviceFacts {
        &self.inner.facts
    }

    /// The cooperative matrices that kernels use for f16 tensors, or why none. The first call tries what the adapter claims:
    /// it multiplies known numbers on the device, and waits for the result.
    ///
    /// # Errors
    /// Why there are none.
    pub fn cooperative_matrix(
        &self,
    ) -> std::result::Result<CooperativeMatrix, NoCooperativeMatrix> {
        self.tried_facts().cooperative_matrix.clone()
    }

    /// Multiplies known numbers with such matrices on the device, and compares the result with the host's.
    ///
    /// # Errors
    /// How it failed.
    pub fn try_cooperative_matrix(
        &self,
        matrix: CooperativeMatrix,
    ) -> std::result::Result<(), NoCooperativeMatrix> {
        trial::run(self, matrix)
    }

    /// [`facts`](Self::facts) after the trial of the cooperative matrices.
    fn tried_facts(&self) -> &DeviceFacts {
        self.inner.tried_facts.get_or_init(|| {
            let mut facts = self.inner.facts.clone();
            if !self.inner.plans_only {
                let claimed = facts.cooperative_matrix;
                facts.cooperative_matrix =
                    claimed.and_then(|matrix| trial::run(self, matrix).map(|()| matrix));
            }
            facts
        })
    }

    /// What kernels for tensors that are stored so are chosen from. Only f16 may meet cooperative matrices, so only for it they
    /// are tried.
    pub(crate) fn facts_for(&self, storage: Storage) -> &DeviceFacts {
        match storage {
            Storage::F16 => self.tried_facts(),
            _ => self.facts(),
        }
    }

    /// A context on the same device with a pool of its own.
    fn beside(&self) -> Self {
        let Inner {
            device,
            queue,
            info,
            facts,
            ..
        } = &*self.inner;
        Self {
            inner: Arc::new(Inner {
                pool: Pool::new(device, PoolOptions::default()),
                pipelines: Pipelines::default(),
                check_finite: AtomicBool::new(false),
                tried_facts: OnceLock::new(),
                plans_only: false,
                info: info.clone(),
                facts: facts.clone(),
                device: device.clone(),
                queue: queue.clone(),
            }),
        }
    }

    /// Opt-in check: with `true`, uploads of floats that hold a NaN or an infinity are [`Error::NotFinite`]. Costs a pass
    /// over the data on the host; off by default.
    pub fn set_check_finite(&self, check: bool) {
        self.inner.check_finite.store(check, Ordering::Relaxed);
    }

    pub(crate) fn checks_finite(&self) -> bool {
        self.inner.check_finite.load(Ordering::Relaxed)
    }

    /// Lets finished work call back, without blocking: applications that await downloads or embed this library call it
    /// once a frame (submitting does the same).
    pub fn poll(&self) {
        // A lost device is reported to whoever waits for its results.
        let _ = self.inner.device.poll(wgpu::PollType::Poll);
    }

    /// Blocks until all submitted work is done (not in browsers). A lost device is reported by what waits for its results.
    pub fn wait(&self) {
        let _ = self.inner.device.poll(wgpu::PollType::wait_indefinitely());
    }

    /// Whether recordings are counted, not run.
    pub(crate) fn plans_only(&self) -> bool {
        self.inner.plans_only
    }

    /// The compiled kernel.
    ///
    /// # Errors
    /// [`Error::Validation`] when the device refuses the shader.
    pub(crate) fn pipeline(&self, kernel: Kernel) -> Result<Arc<Pipeline>> {
        self.inner.pipelines.get(&self.inner.device, kernel)
    }

    /// Compiles `kernels`, unless nothing will be run.
    ///
    /// # Errors
    /// As [`pipeline`](Self::pipeline).
    pub(crate) fn compile(&self, kernels: &[Kernel]) -> Result<()> {
        if self.inner.plans_only {
            return Ok(());
        }
        kernels
            .iter()
            .try_for_each(|kernel| self.pipeline(*kernel).map(drop))
    }
}

fn new_instance() -> wgpu::Instance {
    wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env())
}

/// The permission that wgpu wants for experimental features.
fn experimental_features(features: wgpu::Features) -> wgpu::ExperimentalFeatures {
    if !features.contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX) {
        return wgpu::ExperimentalFeatures::disabled();
    }
    // SAFETY: wgpu warns that experimental features may have bugs that lead to undefined behaviour. The one in use is that of
    // cooperative matrices, where it leaves unchecked whether the adapter lists the sizes that a shader names and whether
    // control flow is uniform: `CooperativeMatrix::of` accepts listed sizes only, the kernels branch around matrices on
    // values uniform over the workgroup, and a trial product comes before the first use.
    #[expect(
        unsafe_code,
        reason = "the only way to ask for an experimental feature"
    )]
    unsafe {
        wgpu::ExperimentalFeatures::enabled()
    }
}

/// The cooperative matrices of the adapter that a device of an application's own is from: the device does not tell.
#[cfg(not(target_arch = "wasm32"))]
fn matrices_of(info: &wgpu::AdapterInfo) -> Vec<wgpu::CooperativeMatrixProperties> {
    let adapters = new_instance().enumerate_adapters(wgpu::Backends::all());
    pollster::block_on(adapters)
        .iter()
        .find(|adapter| adapter.get_info() == *info)
        .map(wgpu::Adapter::cooperative_matrix_properties)
        .unwrap_or_default()
}

/// Browsers have none.
#[cfg(target_arch = "wasm32")]
fn matrices_of(_: &wgpu::AdapterInfo) -> Vec<wgpu::CooperativeMatrixProperties> {
    Vec::new()
}

async fn choose_adapter(
    instance: &wgpu::Instance,
    choice: &AdapterChoice,
) -> Result<wgpu::Adapter> {
    let by_name = |name: String| async move {
        let wanted = name.to_lowercase();
        let adapters = instance.enumerate_adapters(wgpu::Backends::all()).await;
        let found = names(&adapters);
        adapters
            .into_iter()
            .find(|adapter| adapter.get_info().name.to_lowercase().contains(&wanted))
            .ok_or_else(|| Error::NoAdapter {
                reason: format!("none has '{name}' in its name"),
                found,
            })
    };
    let (power_preference, force_fallback_adapter) = match choice {
        AdapterChoice::Named(name) => return by_name(name.clone()).await,
        AdapterChoice::Environment => {
            if let Ok(name) = std::env::var("WGPU_ADAPTER_NAME") {
                return by_name(name).await;
            }
            let power = wgpu::PowerPreference::from_env();
            (
                power.unwrap_or(wgpu::PowerPreference::HighPerformance),
                false,
            )
        }
        AdapterChoice::Power(power) => (*power, false),
        AdapterChoice::Software => (wgpu::PowerPreference::None, true),
    };
    let options = wgpu::RequestAdapterOptions {
        power_preference,
        force_fallback_adapter,
        ..Default::default()
    };
    match instance.request_adapter(&options).await {
        Ok(adapter) => Ok(adapter),
        Err(error) => Err(Error::NoAdapter {
            reason: error.to_string(),
            found: names(&instance.enumerate_adapters(wgpu::Backends::all()).await),
        }),
    }
}

fn names(adapters: &[wgpu::Adapter]) -> String {
    if adapters.is_empty() {
        return "none at all".to_owned();
    }
    let names: Vec<String> = adapters
        .iter()
        .map(|adapter| format!("'{}'", adapter.get_info().name))
        .collect();
    names.join(", ")
}
