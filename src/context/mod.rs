//! A device with its queue, its pool and its compiled kernels.
//!
//! A [`Context`] either owns its device ([`Context::new`], [`Context::headless`]) or borrows the one an application draws
//! with ([`Context::from_device`]); both are the same type afterwards. On a borrowed device nothing global is installed: no
//! error handler, no device-lost callback (the application's own should call
//! [`Pool::device_lost`](crate::pool::Pool::device_lost)). Errors are caught by scopes around this library's own calls.
//!
//! # When the device is lost
//! A driver that is reset, updated or out of memory may lose the device at any call. Then everything that waits, on any
//! thread, ends with [`Error::DeviceLost`] and the driver's reason, futures resolve, every later call that needs the device
//! returns the same at once, the pool gives up what it has cached, and leases go back when their holders are dropped. What was
//! on the device is gone; a new context goes on.
//!
//! wgpu panics where it polls a device that its driver has lost. This library catches that, wherever it polls itself. Three
//! things it cannot do:
//!
//! * The panic hook runs: by default it prints a message that looks like the end of a thread.
//! * With `panic = "abort"` there is nothing to catch, and the process ends.
//! * An application's own `device.poll` panics in the application. [`Context::poll`] and [`Context::wait`] do the same, and do not.
//!
//! On a borrowed device the loss is found by whichever call meets it; an application whose lost callback calls
//! [`Pool::device_lost`](crate::pool::Pool::device_lost) ends every wait at once.

mod adapter;
mod compiled;
mod cooperative;
mod pace;
mod planner;
mod trial;
mod warm_up;

pub use adapter::AdapterChoice;
pub use warm_up::{WarmUp, WarmedKernel};

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use adapter::{choose_adapter, new_instance};

use crate::device::{CooperativeMatrix, DeviceFacts};
use crate::error::{Error, Result};
use crate::kernels::remembered::{KernelOptions, Tuner};
use crate::kernels::{Kernel, Pipeline};
use crate::pool::{Pool, PoolOptions};
use crate::recorder::{Machine, OnDevice, Pace, Recorder};
use crate::watch::{self, DeviceWatch, LastQueue};

/// What an own device is asked for.
#[derive(Clone, Debug, Default)]
pub struct ContextOptions {
    /// Which adapter.
    pub adapter: AdapterChoice,
    /// Limits of the device; `None` for [`Context::recommended_limits`] of the adapter.
    pub limits: Option<wgpu::Limits>,
    /// Features of the device; `None` for [`Context::recommended_features`] and [`Context::cooperative_features`] of the
    /// adapter.
    pub features: Option<wgpu::Features>,
    /// How the pool behaves.
    pub pool: PoolOptions,
    /// How kernels are chosen and compiled.
    pub kernels: KernelOptions,
    /// Leave cooperative matrices out: an experimental feature of wgpu, asked for where the adapter has usable ones and
    /// `features` are not given.
    pub without_cooperative_matrices: bool,
}

fn facts_of(
    device: &wgpu::Device,
    matrices: &[wgpu::CooperativeMatrixProperties],
) -> Result<DeviceFacts> {
    let info = device.adapter_info();
    DeviceFacts::new(&info, &device.limits(), device.features(), matrices)
}

/// Cooperative matrices of the adapter, device, queue.
type Opened = (
    Vec<wgpu::CooperativeMatrixProperties>,
    wgpu::Device,
    wgpu::Queue,
);

/// Has wgpu tell of the loss of a context's own device. It goes on to hand out buffers then, which nothing can use.
#[expect(clippy::disallowed_methods, reason = "the device is the context's own")]
fn watch_own_device(watch: &Arc<DeviceWatch>) {
    let watched = Arc::downgrade(watch);
    let lost = move |reason, message: String| {
        // wgpu holds locks now: whoever polls or calls next tells the rest.
        if let Some(watch) = watched.upgrade() {
            watch.lose(match (reason, message.trim()) {
                (wgpu::DeviceLostReason::Destroyed, "") => "it was destroyed",
                (_, message) => message,
            });
        }
    };
    watch.device().set_device_lost_callback(lost);
}

/// A device ready to compute. Clones share it.
#[derive(Clone, Debug)]
pub struct Context {
    machine: Arc<Machine>,
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
    /// [`Error::NoAdapter`] when no adapter matches, [`Error::NoDevice`] when it refuses the limits or features,
    /// [`Error::DeviceTooSmall`] when they are below WebGPU's defaults in a way that kernels need, [`Error::InvalidConfig`] when
    /// the device has no kernels of the tier asked for.
    pub async fn with_options(options: &ContextOptions) -> Result<Self> {
        // A driver may fail wherever it is asked something, and wgpu panics where it expects none to.
        let opened = watch::catch_async(Self::open(options)).await;
        let (matrices, device, queue) = opened.unwrap_or_else(|panic| {
            Err(Error::NoAdapter {
                reason: panic,
                found: "unknown".to_owned(),
            })
        })?;
        let watch = DeviceWatch::new(device);
        let _last_queue = LastQueue::new(&queue, &watch);
        watch_own_device(&watch);
        let pool = Pool::watched(watch.clone(), options.pool.clone());
        let facts = facts_of(watch.device(), &matrices)?;
        Self::assemble(watch, queue, pool, facts, &options.kernels)
    }

    /// The device, its queue, and what the adapter has.
    async fn open(options: &ContextOptions) -> Result<Opened> {
        let instance = new_instance();
        let adapter = choose_adapter(&instance, &options.adapter).await?;
        let limits = options
            .limits
            .clone()
            .unwrap_or_else(|| Self::recommended_limits(&adapter));
        let features = options.features.unwrap_or_else(|| {
            let features = Self::recommended_features(&adapter);
            match options.without_cooperative_matrices {
                false => features | Self::cooperative_features(&adapter),
                true => features,
            }
        });
        let (device, queue) = adapter
            .request_device(&wgpu::DeviceDescriptor {
                label: Some("dilated-attention"),
                required_features: features,
                experimental_features: cooperative::experimental_features(features),
                required_limits: limits,
                memory_hints: wgpu::MemoryHints::Performance,
                ..Default::default()
            })
            .await
            .map_err(|error| Error::NoDevice {
                adapter: adapter.get_info().name,
                reason: error.to_string(),
            })?;
        let matrices = adapter.cooperative_matrix_properties();
        Ok((matrices, device, queue))
    }

    /// Uses a device that the application has. Submissions go to `queue`; whoever else submits there orders its work by
    /// the order of submission.
    ///
    /// A device with the features of [`cooperative_features`](Self::cooperative_features) uses cooperative matrices, like one
    /// of the context's own.
    ///
    /// # Errors
    /// [`Error::DeviceTooSmall`] when its limits are below what kernels need, [`Error::InvalidConfig`] when `queue` is one of
    /// another device, which shows when the device is idle: work that was submitted before is waited for, up to a second.
    /// [`Error::DeviceLost`].
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
        let watch = DeviceWatch::new(device);
        let pool = Pool::watched(watch.clone(), pool);
        Self::of_watched(watch, queue, pool)
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
        let watch = match pool.watch() {
            Some(watch) => watch.clone(),
            None => {
                let watch = DeviceWatch::new(device);
                pool.give_up_when_lost(&watch);
                watch
            }
        };
        Self::of_watched(watch, queue, pool)
    }

    fn of_watched(watch: Arc<DeviceWatch>, queue: wgpu::Queue, pool: Pool) -> Result<Self> {
        watch.check_queue(&queue)?;
        let device = watch.device();
        let matrices = match device.features().contains(CooperativeMatrix::FEATURES) {
            true => cooperative::matrices_of(&device.adapter_info()),
            false => Vec::new(),
        };
        let facts = facts_of(device, &matrices)?;
        let options = KernelOptions::default();
        Self::assemble(watch, queue, pool, facts, &options)
    }

    /// The same device, queue and pool, with kernels of its own that are chosen and compiled as `options` say; for devices of
    /// an application's own. Tensors go from one context to the other.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] when the device has no kernels of the tier asked for.
    pub fn with_kernel_options(&self, options: &KernelOptions) -> Result<Self> {
        let (watch, queue) = (self.watch().clone(), self.queue().clone());
        let (pool, facts) = (self.pool().clone(), self.facts().clone());
        Self::assemble(watch, queue, pool, facts, options)
    }

    fn assemble(
        watch: Arc<DeviceWatch>,
        queue: wgpu::Queue,
        pool: Pool,
        facts: DeviceFacts,
        options: &KernelOptions,
    ) -> Result<Self> {
        let info = watch.device().adapter_info();
        let pipelines_file = compiled::file(&info, options);
        let facts = DeviceFacts {
            tier: options.tier,
            ..facts
        };
        let tuner = Arc::new(Tuner::new(&info, options));
        let context = Self {
            machine: Arc::new(Machine {
                pipelines: compiled::load(&watch, options, pipelines_file.as_deref()),
                pipelines_file,
                info,
                facts,
                tried_facts: OnceLock::new(),
                pace: Mutex::new(pace::load(pace::file(&tuner).as_deref())),
                tuner,
                pool,
                check_finite: AtomicBool::new(false),
                runner: &OnDevice,
                _last_queue: LastQueue::new(&queue, &watch),
                watch,
                queue,
            }),
        };
        if let Some(tier) = options.tier {
            tier.check(context.tried_facts_of(tier))?;
        }
        Ok(context)
    }

    /// Features worth requesting from `adapter` for this library, those of them that it has: f16 in shaders
    /// ([`SHADER_F16`](wgpu::Features::SHADER_F16)), [`SUBGROUP`](wgpu::Features::SUBGROUP) operations for software
    /// adapters, and the driver's cache of compiled shaders ([`PIPELINE_CACHE`](wgpu::Features::PIPELINE_CACHE)). None is
    /// required: there are kernels for every device within WebGPU's defaults.
    pub fn recommended_features(adapter: &wgpu::Adapter) -> wgpu::Features {
        let useful =
            wgpu::Features::SHADER_F16 | wgpu::Features::SUBGROUP | wgpu::Features::PIPELINE_CACHE;
        adapter.features() & useful
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
        let adapters = async {
            let instance = new_instance();
            let adapters = instance.enumerate_adapters(wgpu::Backends::all()).await;
            adapters.iter().map(wgpu::Adapter::get_info).collect()
        };
        // A driver that fails here has none to offer.
        watch::catch_async(adapters).await.unwrap_or_default()
    }

    /// Starts to record work under `label`. Recordings are independent; several may be open, on several threads.
    pub fn recorder(&self, label: &'static str) -> Recorder {
        Recorder::new(self.machine.clone(), label)
    }

    /// The pool that every buffer of this context comes from.
    pub fn pool(&self) -> &Pool {
        &self.machine.pool
    }

    /// The device.
    pub fn device(&self) -> &wgpu::Device {
        self.machine.watch.device()
    }

    /// What all calls to the device go through.
    pub(crate) fn watch(&self) -> &Arc<DeviceWatch> {
        &self.machine.watch
    }

    /// The queue.
    pub fn queue(&self) -> &wgpu::Queue {
        &self.machine.queue
    }

    /// What is known of the adapter.
    pub fn adapter_info(&self) -> &wgpu::AdapterInfo {
        &self.machine.info
    }

    /// What plans are made from.
    pub fn facts(&self) -> &DeviceFacts {
        &self.machine.facts
    }

    /// The file that [`tune`](Self::tune) writes, if there is a cache folder: to delete it, or to ship a copy with an
    /// application ([`KernelOptions::shipped_winners`]).
    pub fn winners_file(&self) -> Option<&Path> {
        self.machine.tuner.file().map(PathBuf::as_path)
    }

    pub(crate) fn tuner(&self) -> &Tuner {
        &self.machine.tuner
    }

    pub(crate) fn pace(&self) -> MutexGuard<'_, Pace> {
        self.machine.pace()
    }

    /// Opt-in check: with `true`, uploads of floats that hold a NaN or an infinity are [`Error::NotFinite`]. Costs a pass
    /// over the data on the host; off by default.
    pub fn set_check_finite(&self, check: bool) {
        self.machine.check_finite.store(check, Ordering::Relaxed);
    }

    pub(crate) fn checks_finite(&self) -> bool {
        self.machine.checks_finite()
    }

    /// Lets finished work call back, without blocking: applications that await downloads or embed this library call it
    /// once a frame (submitting does the same).
    ///
    /// # Errors
    /// [`Error::DeviceLost`] when the device is known to be lost: what waits for work of the application's own on it waits in vain.
    pub fn poll(&self) -> Result<()> {
        self.machine.watch.poll()
    }

    /// Blocks until all work that was submitted before is done (not in browsers).
    ///
    /// # Errors
    /// [`Error::DeviceLost`] when the device is known to be lost.
    pub fn wait(&self) -> Result<()> {
        let watch = &self.machine.watch;
        let is_done = Arc::new(AtomicBool::new(false));
        let done = is_done.clone();
        let ticket = watch.expect(move |_| done.store(true, Ordering::Release));
        watch.guard(|| {
            self.machine
                .queue
                .on_submitted_work_done(move || ticket.done());
        })?;
        watch.wait_until(|_| is_done.load(Ordering::Acquire))
    }

    /// Whether recordings are counted, not run.
    pub(crate) fn is_dry(&self) -> bool {
        self.machine.is_dry()
    }

    /// The compiled kernel.
    ///
    /// # Errors
    /// [`Error::Validation`] when the device refuses the shader, [`Error::DeviceLost`].
    pub(crate) fn pipeline(&self, kernel: Kernel) -> Result<Arc<Pipeline>> {
        self.machine.pipeline(kernel)
    }

    /// Compiles `kernels`, unless nothing will be run.
    ///
    /// # Errors
    /// As [`pipeline`](Self::pipeline).
    pub(crate) fn compile(&self, kernels: &[Kernel]) -> Result<()> {
        if self.machine.is_dry() {
            return Ok(());
        }
        kernels
            .iter()
            .try_for_each(|kernel| self.pipeline(*kernel).map(drop))
    }
}

impl Recorder {
    /// The context that the work will run on.
    pub fn context(&self) -> Context {
        Context {
            machine: self.machine().clone(),
        }
    }
}
