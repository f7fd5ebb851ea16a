//! Contexts: a device with its queue, its pool and its compiled kernels.
//!
//! The ways to a context are in open.rs.

mod adapter;
mod compiled;
mod cooperative;
mod cost_model;
#[cfg(feature = "dry-run")]
mod dry_run;
mod import;
mod open;
mod self_test;
#[cfg(feature = "models")]
mod tally;
pub(crate) mod warm_up;

pub use adapter::AdapterChoice;
pub use open::ContextOptions;
#[cfg(feature = "models")]
pub(crate) use tally::Tally;
pub use warm_up::WarmUp;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

#[cfg(feature = "testing")]
use crate::device::CooperativeMatrix;
use crate::device::{DeviceCaps, ElementFormat, KernelTier, NoCooperativeMatrix};
#[cfg(doc)]
use crate::error::Error;
use crate::error::Result;
use crate::kernels::remembered::Tuner;
use crate::kernels::{Kernel, Pipeline};
use crate::label::Label;
use crate::pool::Pool;
use crate::recorder::{CostModel, Machine, Recorder};
use crate::watch::DeviceWatch;

/// A device ready to compute, with its queue, its pool and its compiled kernels. Clones share it.
///
/// It either owns its device ([`new`](Self::new), [`new_blocking`](Self::new_blocking)) or borrows the one an application draws
/// with ([`from_device`](Self::from_device)); both are the same type afterwards. On a borrowed device nothing global is
/// installed: no error handler, no device-lost callback (the application's own should call [`Pool::device_lost`]). Errors are
/// caught by scopes around this library's own calls.
///
/// # When the device is lost
/// A driver that is reset, updated or out of memory may lose the device at any call. Then everything that waits, on any
/// thread, ends with [`Error::DeviceLost`] and the driver's reason, futures resolve, every later call that needs the device
/// returns the same at once, the pool gives up what it has cached, and leases go back when their holders are dropped. What was
/// on the device is gone; a new context goes on.
///
/// wgpu panics where it polls a device that its driver has lost. This library catches that, wherever it polls itself. Three
/// things it cannot do:
///
/// * The panic hook runs: by default it prints a message that looks like the end of a thread.
/// * With `panic = "abort"` there is nothing to catch, and the process ends.
/// * An application's own `device.poll` panics in the application. [`poll`](Self::poll) and [`wait`](Self::wait) do the same, and
///   do not.
///
/// On a borrowed device the loss is found by whichever call meets it; an application whose lost callback calls
/// [`Pool::device_lost`] ends every wait at once.
#[derive(Clone, Debug)]
pub struct Context {
    machine: Arc<Machine>,
}

impl Context {
    /// Starts a recording with the name `label`. Recordings are independent of each other; several may be open at a time, on
    /// several threads.
    pub fn recorder(&self, label: impl Into<Label>) -> Recorder {
        Recorder::new(self.machine.clone(), label.into())
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

    /// Whether uploads are checked; see [`set_check_finite`](Self::set_check_finite).
    pub fn checks_finite(&self) -> bool {
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

    /// The tier of the kernels with cooperative matrices, which f16 tensors meet, or why there is none.
    ///
    /// # Errors
    /// Why there is none; [`NoCooperativeMatrix::NotTested`] before
    /// [`test_cooperative_matrices`](Self::test_cooperative_matrices).
    pub fn cooperative_tier(&self) -> std::result::Result<KernelTier, NoCooperativeMatrix> {
        let matrix = self.tested_caps().cooperative_matrix.clone();
        matrix.map(KernelTier::of_matrix)
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
    ) -> std::result::Result<KernelTier, NoCooperativeMatrix> {
        if self.machine.tested_caps.get().is_none() && !self.machine.is_dry() {
            let mut caps = self.machine.caps.clone();
            if let Ok(matrix) = caps.cooperative_matrix {
                let tested = self_test::run(self, matrix).await;
                caps.cooperative_matrix = tested.map(|()| matrix);
            }
            // Another thread may have been faster, with the same result.
            let _ = self.machine.tested_caps.set(caps);
        }
        self.cooperative_tier()
    }

    /// Runs the self test with matrices that the device may not have, such as a wrong number of lanes, or with the features off, to
    /// show that the test finds out. Sizes that the adapter does not list are refused before, because wgpu would not refuse them.
    #[cfg(feature = "testing")]
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

    /// Compiles all kernels that `record` records, now instead of at their first use. It records on the context that it is given,
    /// which only counts ([dry run](Self::dry_run)) and chooses kernels as this one does. Models and tensors for the recording are
    /// made on that context; they take no memory of the device.
    ///
    /// Kernels that are compiled already cost nothing but an empty dispatch. May run on any thread: only who wants a kernel that is
    /// being compiled waits for it. On drivers that compile at the first dispatch, Mesa's software driver among them, other
    /// submissions wait while one kernel is compiled. [`DilatedAttention::warm_up`](crate::DilatedAttention::warm_up) and the
    /// `warm_up` of models know what to record.
    ///
    /// ```no_run
    /// use dilated_attention::longnet::{Call, Input, LongNet, LongNetConfig};
    /// use dilated_attention::{AttentionShape, Context, DType, DilatedAttentionConfig, nn::Parameters};
    /// let context = Context::new_blocking()?;
    /// let attention = DilatedAttentionConfig::new(8, 32, &[1024], &[1])?;
    /// let config = LongNetConfig::encoder(attention, 4, 1024);
    /// let report = context.warm_up(|dry_run| {
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
    /// The errors of `record`; [`Error::Validation`] when the device refuses a shader; the errors of submitting.
    #[cfg(feature = "dry-run")]
    pub fn warm_up(&self, record: impl FnOnce(&Self) -> Result<Recorder>) -> Result<WarmUp> {
        let recorder = record(&self.own_dry_run())?;
        warm_up::compile(self, &recorder.recorded_kernels())
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
