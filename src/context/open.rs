//! Ways to open a context: on a device of its own, on an application's device, or as a dry run without a device.

use std::num::NonZeroUsize;
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

/// Options for opening a context, on a device of its own or on one that the application has.
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
    /// Adapter of the context's own device.
    pub adapter: AdapterChoice,
    /// Limits of the context's own device; `None` for [`Context::recommended_limits`] of the adapter.
    pub limits: Option<wgpu::Limits>,
    /// Features of the context's own device; `None` for [`Context::recommended_features`] and [`Context::cooperative_features`] of
    /// the adapter.
    pub features: Option<wgpu::Features>,
    /// Whether the context's own device gets the features for cooperative matrices, which are experimental in wgpu, if the adapter
    /// has usable matrices. On by default; without effect if [`features`](Self::features) are given.
    pub cooperative_matrices: bool,
    /// The cooperative matrices of the adapter of an application's device, as listed by
    /// [`wgpu::Adapter::cooperative_matrix_properties`], because a device does not list them. If empty, kernels use none on that
    /// device.
    pub adapter_matrices: Vec<wgpu::CooperativeMatrixProperties>,
    /// Options of the pool.
    pub pool: PoolOptions,
    /// How kernels are chosen and compiled, and where results of measurements and compiled kernels are kept.
    pub kernels: KernelOptions,
    /// Most tokens of one [part](crate::Tensor::parts) of a tensor, or rows of one part of a matrix; `None` for as many as a buffer
    /// holds, which is what to use. With few, an application that reads or writes parts itself can be tested with small tensors. The
    /// number is rounded up until parts begin at whole vec4. Products in half precision may need a multiple of 4. Tensors with one
    /// dimension are not divided so.
    pub part_rows: Option<NonZeroUsize>,
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
            part_rows: None,
        }
    }
}

impl ContextOptions {
    /// The default adapter with recommended limits and features. Nothing is read from or written to the user's folders.
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

    /// Sets whether the device gets the features for [cooperative matrices](Self::cooperative_matrices).
    pub fn with_cooperative_matrices(self, cooperative_matrices: bool) -> Self {
        Self {
            cooperative_matrices,
            ..self
        }
    }

    /// Sets the [cooperative matrices](Self::adapter_matrices) that the adapter of an application's device lists.
    pub fn with_adapter_matrices(self, matrices: Vec<wgpu::CooperativeMatrixProperties>) -> Self {
        Self {
            adapter_matrices: matrices,
            ..self
        }
    }

    /// Sets the options of the [pool](Self::pool).
    pub fn with_pool(self, pool: PoolOptions) -> Self {
        Self { pool, ..self }
    }

    /// Sets how [kernels](Self::kernels) are chosen and compiled.
    pub fn with_kernels(self, kernels: KernelOptions) -> Self {
        Self { kernels, ..self }
    }

    /// Sets the most rows of one [part](Self::part_rows) of a tensor.
    pub fn with_part_rows(self, part_rows: Option<NonZeroUsize>) -> Self {
        Self { part_rows, ..self }
    }

    /// Sets the folder for results of measurements and compiled kernels. By default there is none.
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
    /// [`Error::NoAdapter`] when no adapter matches, [`Error::NoDevice`] when the adapter refuses the limits or features,
    /// [`Error::DeviceTooSmall`] when a limit is below what kernels need ([`DeviceCaps::least_limits`]), [`Error::Unsupported`]
    /// when the device has no kernels of the tier asked for.
    pub async fn open(&self) -> Result<Context> {
        Context::open(self).await
    }

    /// As [`open`](Self::open), but blocks (not in browsers).
    ///
    /// # Errors
    /// As [`open`](Self::open).
    #[cfg(not(target_arch = "wasm32"))]
    pub fn open_blocking(&self) -> Result<Context> {
        pollster::block_on(self.open())
    }

    /// Opens a context on a device that the application has, with a new pool. Submissions go to `queue`. The application may submit
    /// there, too; work runs in the order of submission.
    ///
    /// Kernels use cooperative matrices if the device was made with [`Context::cooperative_features`],
    /// [`adapter_matrices`](Self::adapter_matrices) lists them, and [`Context::test_cooperative_matrices`] was called.
    ///
    /// # Errors
    /// [`Error::DeviceTooSmall`] when a limit is below what kernels need ([`DeviceCaps::least_limits`]); [`Error::InvalidConfig`]
    /// when `queue` belongs to another device, which can only be seen once the device is idle, so this call waits up to a second
    /// for earlier submissions; [`Error::Unsupported`] when the device has no kernels of the tier asked for; [`Error::DeviceLost`].
    pub fn on_device(&self, device: wgpu::Device, queue: wgpu::Queue) -> Result<Context> {
        let watch = DeviceWatch::new(device);
        let pool = Pool::watched(watch.clone(), self.pool.clone());
        Context::of_watched(watch, queue, pool, self)
    }

    /// As [`on_device`](Self::on_device), with a pool that the caller has, for example one with its own
    /// [`BufferSource`](crate::pool::BufferSource). The pool's buffers must belong to `device`; only wgpu checks that, when they
    /// are used. Contexts that share a pool accept each other's tensors.
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
    options: &ContextOptions,
) -> Result<DeviceCaps> {
    let info = device.adapter_info();
    let caps = DeviceCaps::new(&info, &device.limits(), device.features(), matrices)?;
    Ok(DeviceCaps {
        part_rows: options.part_rows.map(|rows| rows.get() as u64),
        ..caps
    })
}

/// The cooperative matrices of the adapter, the device and its queue.
type Opened = (
    Vec<wgpu::CooperativeMatrixProperties>,
    wgpu::Device,
    wgpu::Queue,
);

/// Asks wgpu to report the loss of a context's own device. Without that, wgpu would go on to hand out buffers that are of no use.
#[expect(clippy::disallowed_methods, reason = "the device is the context's own")]
fn watch_own_device(watch: &Arc<DeviceWatch>) {
    let watched = Arc::downgrade(watch);
    let lost = move |reason, message: String| {
        // wgpu holds locks here, so this only notes the loss. The next call to the device tells everyone who waits.
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
    /// Opens a device on the default adapter with recommended limits. [`ContextOptions`] has all other ways.
    ///
    /// # Errors
    /// As [`ContextOptions::open`].
    pub async fn new() -> Result<Self> {
        ContextOptions::new().open().await
    }

    /// As [`new`](Self::new), but blocks (not in browsers).
    ///
    /// # Errors
    /// As [`new`](Self::new).
    #[cfg(not(target_arch = "wasm32"))]
    pub fn new_blocking() -> Result<Self> {
        ContextOptions::new().open_blocking()
    }

    /// Opens a context on a device that the application has, with default options; see [`ContextOptions::on_device`].
    ///
    /// # Errors
    /// As [`ContextOptions::on_device`].
    pub fn from_device(device: wgpu::Device, queue: wgpu::Queue) -> Result<Self> {
        ContextOptions::new().on_device(device, queue)
    }

    async fn open(options: &ContextOptions) -> Result<Self> {
        // A driver may fail at any call, and wgpu panics where it does not expect that.
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
        let caps = caps_of(watch.device(), &matrices, options)?;
        let chooses_matrices = caps.processor == Processor::Gpu;
        let context = Self::assemble(watch, queue, pool, caps, &options.kernels);
        let tier = options.kernels.tier;
        if chooses_matrices || tier.is_some_and(KernelTier::is_cooperative) {
            // A failed test is no error: kernels do without matrices, and cooperative_matrix gives the reason.
            let _ = context.test_cooperative_matrices().await;
        }
        context.check_tier()
    }

    /// Opens the device and its queue.
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
        let caps = caps_of(watch.device(), &options.adapter_matrices, options)?;
        Self::assemble(watch, queue, pool, caps, &options.kernels).check_tier()
    }

    /// Checks that the device has kernels of the tier asked for.
    fn check_tier(self) -> Result<Self> {
        if let Some(tier) = self.caps().tier {
            tier.check(self.tested_caps_of(tier))?;
        }
        Ok(self)
    }

    /// A context with the same device, queue and pool, whose kernels are chosen and compiled with other options. It can use the
    /// tensors of this context, and this context its tensors.
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

    /// Features of `adapter` that are worth requesting for this library: f16 in shaders
    /// ([`SHADER_F16`](wgpu::Features::SHADER_F16)), subgroup operations for software adapters
    /// ([`SUBGROUP`](wgpu::Features::SUBGROUP)), and the driver's pipeline cache
    /// ([`PIPELINE_CACHE`](wgpu::Features::PIPELINE_CACHE)). None of them is required, because there are kernels for WebGPU's
    /// defaults.
    pub fn recommended_features(adapter: &wgpu::Adapter) -> wgpu::Features {
        let useful =
            wgpu::Features::SHADER_F16 | wgpu::Features::SUBGROUP | wgpu::Features::PIPELINE_CACHE;
        adapter.features() & useful
    }

    /// Limits of `adapter` that are worth requesting for this library: the adapter's own limits on buffers, bindings and workgroup
    /// memory, so that long sequences need fewer windows, and WebGPU's defaults for all others.
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

    /// All adapters of the machine. The environment variable `WGPU_BACKEND` limits the backends.
    pub async fn adapters() -> Vec<wgpu::AdapterInfo> {
        let adapters = async {
            let instance = new_instance();
            let adapters = instance.enumerate_adapters(wgpu::Backends::all()).await;
            adapters.iter().map(wgpu::Adapter::get_info).collect()
        };
        // If a driver fails here, the list is empty.
        watch::catch_async(adapters).await.unwrap_or_default()
    }

    /// Features to request from `adapter` for cooperative matrices; none if the adapter has no usable matrices. They are
    /// experimental: an application that makes its own device must also set [`wgpu::DeviceDescriptor::experimental_features`].
    pub fn cooperative_features(adapter: &wgpu::Adapter) -> wgpu::Features {
        let matrices = adapter.cooperative_matrix_properties();
        match CooperativeMatrix::of(&adapter.get_info(), adapter.features(), &matrices) {
            Ok(_) => CooperativeMatrix::FEATURES,
            Err(_) => wgpu::Features::empty(),
        }
    }

    /// A context on the same device with a pool and compiled kernels of its own.
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

    /// A context without a device, for planning. Its recordings take leases and count dispatches as on a device with `caps`, but
    /// nothing runs, and its downloads never arrive.
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

    /// A dry run for the device of this context. It chooses the same kernels as this context.
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
