//! Contexts: a device with its queue, its pool and its compiled kernels.
//!
//! A [`Context`] either owns its device ([`Context::new`], [`Context::new_blocking`]), or uses a device that the application has,
//! for example the one it draws with ([`Context::from_device`]). On an application's device nothing global is installed: no error
//! handler and no device-lost callback. Errors are caught by scopes around this library's own calls.
//!
//! # When the device is lost
//! When a driver is reset, updated or out of memory, any call may lose the device. Then every wait on any thread ends with
//! [`Error::DeviceLost`] and the driver's reason. Futures resolve to this error, and later calls that need the device return it at
//! once. The pool drops its cached buffers, and leases go back when their holders are dropped. Data on the device is gone; open a
//! new context to go on.
//!
//! wgpu panics when it polls a device that its driver has lost. This library catches the panic wherever it polls itself. Three
//! things remain:
//!
//! * The panic hook still runs. By default it prints a message that looks as if a thread had ended.
//! * With `panic = "abort"` the process ends, because nothing can be caught.
//! * If the application calls `device.poll` itself, it panics there. Call [`Context::poll`] or [`Context::wait`] instead.
//!
//! On an application's device, a loss is noticed by the first call that fails. To end every wait at once, let the application's
//! device-lost callback call [`Pool::device_lost`](crate::pool::Pool::device_lost).

mod adapter;
mod compiled;
mod cooperative;
mod cost_model;
mod dry_run;
mod open;
mod self_test;
mod warm_up;

pub use adapter::AdapterChoice;
pub use open::ContextOptions;
pub use warm_up::{WarmUp, WarmedKernel};

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use crate::device::{
    CooperativeMatrix, DeviceCaps, ElementFormat, KernelTier, NoCooperativeMatrix,
};
#[cfg(doc)]
use crate::error::Error;
use crate::error::Result;
use crate::kernels::remembered::Tuner;
use crate::kernels::{Kernel, Pipeline};
use crate::pool::Pool;
use crate::recorder::{CostModel, Machine, Recorder};
use crate::watch::DeviceWatch;

/// A device that is ready to compute; see the [module](self) documentation. Clones share it.
#[derive(Clone, Debug)]
pub struct Context {
    machine: Arc<Machine>,
}

impl Context {
    /// Starts a recording with the name `label`. Recordings are independent of each other; several may be open at a time, on
    /// several threads.
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

    /// The watch that all calls to the device go through.
    pub(crate) fn watch(&self) -> &Arc<DeviceWatch> {
        &self.machine.watch
    }

    /// The queue.
    pub fn queue(&self) -> &wgpu::Queue {
        &self.machine.queue
    }

    /// Name, driver and type of the adapter.
    pub fn adapter_info(&self) -> &wgpu::AdapterInfo {
        &self.machine.info
    }

    /// Limits and traits of the device, from which plans are made.
    pub fn caps(&self) -> &DeviceCaps {
        &self.machine.caps
    }

    /// Path of the winners file, which [`tune`](crate::tuning::tune) writes; `None` without a cache folder. The file may be
    /// deleted. A copy of it can be shipped with an application
    /// ([`KernelOptions::shipped_winners`](crate::KernelOptions::shipped_winners)).
    pub fn winners_file(&self) -> Option<&Path> {
        self.machine.tuner.file().map(PathBuf::as_path)
    }

    pub(crate) fn tuner(&self) -> &Tuner {
        &self.machine.tuner
    }

    pub(crate) fn cost_model(&self) -> MutexGuard<'_, CostModel> {
        self.machine.cost_model()
    }

    /// Sets whether uploads check that all floats are finite, and fail with [`Error::NotFinite`] otherwise. The check costs a pass
    /// over the data on the host. It is off by default.
    pub fn set_check_finite(&self, check: bool) {
        self.machine.check_finite.store(check, Ordering::Relaxed);
    }

    pub(crate) fn checks_finite(&self) -> bool {
        self.machine.checks_finite()
    }
    /// Polls the device without blocking, so that callbacks of finished work run: downloads become ready and leases go back.
    /// Applications that await downloads or embed this library call it once a frame. Submitting does the same.
    ///
    /// # Errors
    /// [`Error::DeviceLost`] when the device is known to be lost. The application's own work on this device will not finish either.
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

    /// Compiles `kernels`, except on a dry run, which runs no kernel.
    ///
    /// # Errors
    /// As [`pipeline`](Self::pipeline).
    pub(crate) fn compile(&self, kernels: &[Kernel]) -> Result<()> {
        let prepare = |kernel: &Kernel| self.machine.runner.prepare(&self.machine, *kernel);
        kernels.iter().try_for_each(prepare)
    }

    /// The cooperative matrices that kernels use for f16 tensors.
    ///
    /// # Errors
    /// The reason why kernels use none; [`NoCooperativeMatrix::NotTested`] before
    /// [`test_cooperative_matrices`](Self::test_cooperative_matrices).
    pub fn cooperative_matrix(
        &self,
    ) -> std::result::Result<CooperativeMatrix, NoCooperativeMatrix> {
        self.tested_caps().cooperative_matrix.clone()
    }

    /// Tests the cooperative matrices that the adapter lists: multiplies known numbers on the device and compares every element
    /// with the correct result. If the test passes, kernels for f16 tensors use the matrices from then on. The result is kept, and
    /// later calls return it at once.
    ///
    /// [`ContextOptions::open`] runs this test on GPUs, and wherever a tier with cooperative matrices is asked for. On an
    /// application's device no test runs unless the application calls this.
    ///
    /// # Errors
    /// The reason why kernels use no cooperative matrices.
    pub async fn test_cooperative_matrices(
        &self,
    ) -> std::result::Result<CooperativeMatrix, NoCooperativeMatrix> {
        if self.machine.tested_caps.get().is_none() && !self.machine.is_dry() {
            let mut caps = self.machine.caps.clone();
            if let Ok(matrix) = caps.cooperative_matrix {
                let tested = self_test::run(self, matrix).await;
                caps.cooperative_matrix = tested.map(|()| matrix);
            }
            // Another thread may have been faster, with the same result.
            let _ = self.machine.tested_caps.set(caps);
        }
        self.cooperative_matrix()
    }

    /// Runs the self test with matrices that the device may not have, such as a wrong number of lanes, or with the features off, to
    /// show that the test finds out. Sizes that the adapter does not list are refused before, because wgpu would not refuse them.
    #[doc(hidden)]
    pub async fn test_claim_of_matrices(
        &self,
        matrix: CooperativeMatrix,
    ) -> std::result::Result<(), NoCooperativeMatrix> {
        let feature = wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX;
        match &self.caps().cooperative_matrix {
            Ok(listed) if listed.size == matrix.size => {}
            _ if !self.device().features().contains(feature) => {}
            Ok(_) => return Err(NoCooperativeMatrix::NoSuchSize),
            Err(reason) => return Err(reason.clone()),
        }
        self_test::run(self, matrix).await
    }

    /// [`caps`](Self::caps) with those cooperative matrices that have passed the self test.
    fn tested_caps(&self) -> &DeviceCaps {
        let machine = &self.machine;
        machine.tested_caps.get().unwrap_or(&machine.untested_caps)
    }

    /// The caps from which kernels for tensors of `format` are chosen. Only for f16 may they include cooperative matrices.
    pub(crate) fn caps_for(&self, format: ElementFormat) -> &DeviceCaps {
        match format {
            ElementFormat::F16 => self.tested_caps(),
            _ => self.caps(),
        }
    }

    /// The caps that decide whether the device has kernels of a tier.
    pub(super) fn tested_caps_of(&self, tier: KernelTier) -> &DeviceCaps {
        match tier {
            KernelTier::Coop8 | KernelTier::Coop16 => self.tested_caps(),
            _ => self.caps(),
        }
    }

    /// As [`warm_up`](Self::warm_up), for all kernels of a recording. `record` gets a [dry run](Self::dry_run) that chooses the
    /// same kernels as this context. It must make models and tensors on that context, where they take no memory of the device.
    ///
    /// ```no_run
    /// use dilated_attention::longnet::{Call, Input, LongNet, LongNetConfig};
    /// use dilated_attention::{AttentionShape, Context, DType, DilatedAttentionConfig, nn::Parameters};
    /// let context = Context::new_blocking()?;
    /// let attention = DilatedAttentionConfig::new(8, 32, &[1024], &[1])?;
    /// let config = LongNetConfig::encoder(attention, 4, 1024);
    /// let report = context.warm_up_recording(|dry_run| {
    ///     let model = LongNet::new(dry_run, config.clone())?;
    ///     let mut recorder = dry_run.recorder("warm up");
    ///     let weights = Parameters::zeros(&mut recorder, model.parameters(), "weights")?;
    ///     let x = recorder.empty("x", &[1, 4096, 256], DType::F32)?;
    ///     let call = Call::new(AttentionShape::new(1, 4096)?);
    ///     model.forward(&mut recorder, &weights, Input::Embeddings(&x), &call, false)?;
    ///     Ok(recorder)
    /// })?;
    /// println!("{report}");
    /// # Ok::<(), dilated_attention::Error>(())
    /// ```
    ///
    /// # Errors
    /// The errors of `record`, and as [`warm_up`](Self::warm_up).
    pub fn warm_up_recording(
        &self,
        record: impl FnOnce(&Self) -> Result<Recorder>,
    ) -> Result<WarmUp> {
        let recorder = record(&self.own_dry_run())?;
        self.warm_up(&recorder.kernels())
    }

    /// Compiles `kernels` now instead of at their first use. For a kernel that is compiled already, this costs only an empty
    /// dispatch. It may run on any thread: other threads wait only if they want a kernel that is being compiled. On drivers that
    /// compile at the first dispatch, such as Mesa's software driver, other submissions wait while a kernel is compiled.
    ///
    /// # Errors
    /// [`Error::Validation`] when the device refuses a shader; those of submitting.
    pub fn warm_up(&self, kernels: &[Kernel]) -> Result<WarmUp> {
        warm_up::run(self, kernels)
    }

    /// Expected time of the dispatches of `recorder` on the device. It follows from the times that sliced submissions of this
    /// context have measured, or of an earlier process that [saved](Self::save_cost_model) them. `None` if one of the kernels was
    /// never measured. The recording may also be on a [dry run](Self::dry_run) for the same device.
    ///
    /// Measured times include whatever else the machine did meanwhile. Submissions that are not sliced are not measured. Time
    /// between slices is not included: the application's own work, and threads that wait for their turn.
    pub fn expected_time(&self, recorder: &Recorder) -> Option<Duration> {
        let seconds = self.cost_model().expected(&recorder.work())?;
        Some(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
    }
    /// Writes the times of kernels that sliced submissions have measured to the cache folder, for later processes on this adapter
    /// and driver. These know the [expected time](Self::expected_time) of work before it runs, and size their first slices by it.
    /// The file may be deleted at any time; a damaged file is ignored.
    ///
    /// Returns whether a file was written, which needs a cache folder.
    pub fn save_cost_model(&self) -> bool {
        let Some(file) = cost_model::file(self.tuner()) else {
            return false;
        };
        let json = self.cost_model().to_json();
        compiled::replace(&file, &json)
    }

    /// Writes the driver's compiled kernels to the cache folder, for later processes. [`warm_up`](Self::warm_up) does this by itself.
    ///
    /// Returns whether a file was written, which needs a cache folder and a backend with a pipeline cache.
    pub fn save_compiled(&self) -> bool {
        let machine = &self.machine;
        let (Some(file), Some(data)) = (
            &machine.pipelines_file,
            machine.pipelines.cached_data(&machine.watch),
        ) else {
            return false;
        };
        compiled::save(file, &data)
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
