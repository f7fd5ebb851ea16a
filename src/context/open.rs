//! The ways to a context: a device of its own, a borrowed one, or none.

use std::sync::{Arc, Mutex};

use super::adapter::{AdapterChoice, choose_adapter, new_instance};
#[cfg(feature = "dry-run")]
use super::dry_run::DryRunSource;
use super::{Context, compiled, cooperative, cost_model};
use crate::device::{CooperativeMatrix, DeviceCaps, KernelTier, Processor};
use crate::error::{Error, Result};
use crate::kernels::remembered::{CacheFolder, KernelOptions, Tuner};
use crate::pool::{Pool, PoolOptions};
#[cfg(feature = "dry-run")]
use crate::recorder::DryRun;
use crate::recorder::{Machine, OnDevice};
use crate::watch::{self, DeviceWatch, LastQueue};

/// How a context is opened: on a device of its own, or on one that the application has.
///
/// ```no_run
/// use dilated_attention::{CacheFolder, ContextOptions, PoolOptions};
/// let context = ContextOptions::new()
///     .with_pool(PoolOptions::default().with_budget_bytes(1 << 30))
///     .with_cache(CacheFolder::User)
///     .open_blocking()?;
/// # drop(context);
/// # Ok::<(), dilated_attention::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct ContextOptions {
    /// Which adapter, of a device of the context's own.
    pub adapter: AdapterChoice,
    /// Limits of that device; `None` for [`Context::recommended_limits`] of the adapter.
    pub limits: Option<wgpu::Limits>,
    /// Features of that device; `None` for [`Context::recommended_features`] and [`Context::cooperative_features`] of the
    /// adapter.
    pub features: Option<wgpu::Features>,
    /// Whether that device has cooperative matrices, an experimental feature of wgpu, where the adapter has usable ones and
    /// `features` are not given. On unless told.
    pub cooperative_matrices: bool,
    /// What the adapter of an application's device says of cooperative matrices
    /// ([`wgpu::Adapter::cooperative_matrix_properties`]), for the device does not tell. Without, kernels use none on it.
    pub adapter_matrices: Vec<wgpu::CooperativeMatrixProperties>,
    /// How the pool behaves.
    pub pool: PoolOptions,
    /// How kernels are chosen and compiled, and where that is remembered.
    pub kernels: KernelOptions,
}

impl Default for ContextOptions {
    fn default() -> Self {
        Self {
            adapter: AdapterChoice::default(),
            limits: None,
            features: None,
            cooperative_matrices: true,
            adapter_matrices: Vec::new(),
            pool: PoolOptions::default(),
            kernels: KernelOptions::default(),
        }
    }
}

impl ContextOptions {
    /// The default adapter with recommended limits and features; nothing is read or written in the user's folders.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the [adapter](Self::adapter).
    pub fn with_adapter(self, adapter: AdapterChoice) -> Self {
        Self { adapter, ..self }
    }

    /// Sets the [limits](Self::limits).
    pub fn with_limits(self, limits: wgpu::Limits) -> Self {
        Self {
            limits: Some(limits),
            ..self
        }
    }

    /// Sets the [features](Self::features).
    pub fn with_features(self, features: wgpu::Features) -> Self {
        Self {
            features: Some(features),
            ..self
        }
    }

    /// Sets whether the device has [cooperative matrices](Self::cooperative_matrices).
    pub fn with_cooperative_matrices(self, cooperative_matrices: bool) -> Self {
        Self {
            cooperative_matrices,
            ..self
        }
    }

    /// Sets what the adapter of an application's device says of [cooperative matrices](Self::adapter_matrices).
    pub fn with_adapter_matrices(self, matrices: Vec<wgpu::CooperativeMatrixProperties>) -> Self {
        Self {
            adapter_matrices: matrices,
            ..self
        }
    }

    /// Sets how the [pool](Self::pool) behaves.
    pub fn with_pool(self, pool: PoolOptions) -> Self {
        Self { pool, ..self }
    }

    /// Sets how [kernels](Self::kernels) are chosen.
    pub fn with_kernels(self, kernels: KernelOptions) -> Self {
        Self { kernels, ..self }
    }

    /// Sets where what was measured and compiled is remembered; nowhere unless told.
    pub fn with_cache(self, cache: CacheFolder) -> Self {
        let kernels = KernelOptions {
            cache,
            ..self.kernels
        };
        Self { kernels, ..self }
    }

    /// Opens a device of the context's own.
    ///
    /// # Errors
    /// [`Error::NoAdapter`] when no adapter matches, [`Error::NoDevice`] when it refuses the limits or features,
    /// [`Error::DeviceTooSmall`] when they are below WebGPU's defaults in a way that kernels need, [`Error::Unsupported`] when
    /// the device has no kernels of the tier asked for.
    pub async fn open(&self) -> Result<Context> {
        Context::open(self).await
    }

    /// As [`open`](Self::open), blocking (not in browsers).
    ///
    /// # Errors
    /// As [`open`](Self::open).
    #[cfg(not(target_arch = "wasm32"))]
    pub fn open_blocking(&self) -> Result<Context> {
        pollster::block_on(self.open())
    }

    /// Uses a device that the application has, with a pool as [`pool`](Self::pool) says. Submissions go to `queue`; whoever else
    /// submits there orders its work by the order of submission. A device with the features of
    /// [`Context::cooperative_features`] uses cooperative matrices where [`adapter_matrices`](Self::adapter_matrices) lists them.
    ///
    /// # Errors
    /// [`Error::DeviceTooSmall`] when its limits are below what kernels need, [`Error::InvalidConfig`] when `queue` is one of
    /// another device, which shows when the device is idle: work that was submitted before is waited for, up to a second;
    /// [`Error::Unsupported`] when the device has no kernels of the tier asked for, [`Error::DeviceLost`].
    pub fn on_device(&self, device: wgpu::Device, queue: wgpu::Queue) -> Result<Context> {
        let watch = DeviceWatch::new(device);
        let pool = Pool::watched(watch.clone(), self.pool.clone());
        Context::of_watched(watch, queue, pool, self)
    }

    /// As [`on_device`](Self::on_device), with a pool of the caller's, for example one over a
    /// [`BufferSource`](crate::pool::BufferSource) of its own. The pool's buffers must be buffers of `device`; nothing checks
    /// that before wgpu does. Contexts that share a pool accept each other's tensors.
    ///
    /// # Errors
    /// As [`on_device`](Self::on_device).
    pub fn on_device_with_pool(
        &self,
        device: wgpu::Device,
        queue: wgpu::Queue,
        pool: Pool,
    ) -> Result<Context> {
        let watch = match pool.watch() {
            Some(watch) => watch.clone(),
            None => {
                let watch = DeviceWatch::new(device);
                pool.give_up_when_lost(&watch);
                watch
            }
        };
        Context::of_watched(watch, queue, pool, self)
    }
}

fn caps_of(
    device: &wgpu::Device,
    matrices: &[wgpu::CooperativeMatrixProperties],
) -> Result<DeviceCaps> {
    let info = device.adapter_info();
    DeviceCaps::new(&info, &device.limits(), device.features(), matrices)
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

impl Context {
    /// Opens a device on the default adapter with recommended limits; [`ContextOptions`] has all other ways.
    ///
    /// # Errors
    /// As [`ContextOptions::open`].
    pub async fn new() -> Result<Self> {
        ContextOptions::new().open().await
    }

    /// As [`new`](Self::new), blocking (not in browsers).
    ///
    /// # Errors
    /// As [`new`](Self::new).
    #[cfg(not(target_arch = "wasm32"))]
    pub fn new_blocking() -> Result<Self> {
        ContextOptions::new().open_blocking()
    }

    /// Uses a device that the application has, as [`ContextOptions::on_device`] does with default options.
    ///
    /// # Errors
    /// As [`ContextOptions::on_device`].
    pub fn from_device(device: wgpu::Device, queue: wgpu::Queue) -> Result<Self> {
        ContextOptions::new().on_device(device, queue)
    }

    async fn open(options: &ContextOptions) -> Result<Self> {
        // A driver may fail wherever it is asked something, and wgpu panics where it expects none to.
        let opened = watch::catch_async(Self::open_device(options)).await;
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
        let caps = caps_of(watch.device(), &matrices)?;
        let chooses_matrices = caps.processor == Processor::Gpu;
        let context = Self::assemble(watch, queue, pool, caps, &options.kernels);
        let tier = options.kernels.tier;
        if chooses_matrices || tier.is_some_and(KernelTier::is_cooperative) {
            // Where there are none, kernels do without, and cooperative_matrix says why.
            let _ = context.test_cooperative_matrices().await;
        }
        context.check_tier()
    }

    /// The device, its queue, and what the adapter has.
    async fn open_device(options: &ContextOptions) -> Result<Opened> {
        let instance = new_instance();
        let adapter = choose_adapter(&instance, &options.adapter).await?;
        let limits = options
            .limits
            .clone()
            .unwrap_or_else(|| Self::recommended_limits(&adapter));
        let features = options.features.unwrap_or_else(|| {
            let features = Self::recommended_features(&adapter);
            match options.cooperative_matrices {
                true => features | Self::cooperative_features(&adapter),
                false => features,
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

    fn of_watched(
        watch: Arc<DeviceWatch>,
        queue: wgpu::Queue,
        pool: Pool,
        options: &ContextOptions,
    ) -> Result<Self> {
        watch.check_queue(&queue)?;
        let caps = caps_of(watch.device(), &options.adapter_matrices)?;
        Self::assemble(watch, queue, pool, caps, &options.kernels).check_tier()
    }

    /// Whether the device has kernels of the tier asked for.
    fn check_tier(self) -> Result<Self> {
        if let Some(tier) = self.caps().tier {
            tier.check(self.tested_caps_of(tier))?;
        }
        Ok(self)
    }

    /// The same device, queue and pool, with kernels of its own that are chosen and compiled as `options` say; for devices of
    /// an application's own. Tensors go from one context to the other.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when the device has no kernels of the tier asked for.
    pub fn with_kernel_options(&self, options: &KernelOptions) -> Result<Self> {
        let (watch, queue) = (self.watch().clone(), self.queue().clone());
        let (pool, caps) = (self.pool().clone(), self.caps().clone());
        let context = Self::assemble(watch, queue, pool, caps, options);
        if let Some(tested) = self.machine.tested_caps.get() {
            let tested = DeviceCaps {
                tier: options.tier,
                ..tested.clone()
            };
            let _ = context.machine.tested_caps.set(tested);
        }
        context.check_tier()
    }

    fn assemble(
        watch: Arc<DeviceWatch>,
        queue: wgpu::Queue,
        pool: Pool,
        caps: DeviceCaps,
        options: &KernelOptions,
    ) -> Self {
        let info = watch.device().adapter_info();
        let pipelines_file = compiled::file(&info, options);
        let caps = DeviceCaps {
            tier: options.tier,
            ..caps
        };
        let tuner = Arc::new(Tuner::new(&info, options));
        let mut machine = Machine::new(watch, queue, pool, caps, tuner, &OnDevice);
        machine.pipelines = compiled::load(&machine.watch, options, pipelines_file.as_deref());
        machine.pipelines_file = pipelines_file;
        machine.cost_model = Mutex::new(cost_model::load(
            cost_model::file(&machine.tuner).as_deref(),
        ));
        Self {
            machine: Arc::new(machine),
        }
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

    /// A context on the same device with a pool of its own.
    pub(super) fn beside(&self) -> Self {
        let machine = &self.machine;
        let pool = Pool::watched(machine.watch.clone(), PoolOptions::default());
        Self {
            machine: Arc::new(Machine::new(
                machine.watch.clone(),
                machine.queue.clone(),
                pool,
                machine.caps.clone(),
                machine.tuner.clone(),
                &OnDevice,
            )),
        }
    }

    /// A context that plans for devices with `caps`, without one: recordings on it take leases and are counted, and do
    /// nothing. Its downloads never arrive.
    ///
    /// ```
    /// use dilated_attention::longnet::{LongNet, LongNetConfig};
    /// use dilated_attention::{Context, DeviceCaps, DilatedAttentionConfig};
    /// let dry_run = Context::dry_run(DeviceCaps::webgpu_defaults());
    /// let attention = DilatedAttentionConfig::new(8, 32, &[1024], &[1])?;
    /// let model = LongNet::new(&dry_run, LongNetConfig::encoder(attention, 4, 1024))?;
    /// let weights = model.initial_weights(&dry_run, 0)?;
    /// assert!(dry_run.pool().stats().requested_bytes.peak > 4 * model.parameters().num_elements() as u64);
    /// # drop(weights);
    /// # Ok::<(), dilated_attention::Error>(())
    /// ```
    #[cfg(feature = "dry-run")]
    pub fn dry_run(caps: DeviceCaps) -> Self {
        Self::dry_run_with(caps, Arc::default())
    }

    /// A dry run for this context's device, which chooses the same kernels.
    #[cfg(feature = "dry-run")]
    pub(crate) fn own_dry_run(&self) -> Self {
        Self::dry_run_with(self.tested_caps().clone(), self.machine.tuner.clone())
    }

    #[cfg(feature = "dry-run")]
    fn dry_run_with(caps: DeviceCaps, tuner: Arc<Tuner>) -> Self {
        let (device, queue) = wgpu::Device::noop(&wgpu::DeviceDescriptor::default());
        let watch = DeviceWatch::new(device.clone());
        let source = DryRunSource {
            device: device.clone(),
            max_buffer_bytes: caps.max_buffer_bytes,
        };
        let pool = Pool::from_source(source, PoolOptions::default());
        Self {
            machine: Arc::new(Machine::new(watch, queue, pool, caps, tuner, &DryRun)),
        }
    }
}
