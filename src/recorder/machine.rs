//! The machine: what recordings run on.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::cost_model::CostModel;
use super::runner::Runner;
use crate::device::DeviceCaps;
use crate::error::Result;
use crate::kernels::remembered::Tuner;
use crate::kernels::{Kernel, Pipeline, Pipelines};
use crate::pool::Pool;
use crate::watch::{DeviceWatch, LastQueue};

/// A device with its queue, its pool, its compiled kernels and their cost model. A [`Context`](crate::Context) is a handle
/// to a machine and knows how to make one.
#[derive(Debug)]
pub(crate) struct Machine {
    pub watch: Arc<DeviceWatch>,
    pub queue: wgpu::Queue,
    pub info: wgpu::AdapterInfo,
    pub caps: DeviceCaps,
    /// The caps without cooperative matrices that were not tested. A dry run believes what it is told.
    pub untested_caps: DeviceCaps,
    /// The caps after the self test of the cooperative matrices.
    pub tested_caps: OnceLock<DeviceCaps>,
    pub pool: Pool,
    pub pipelines: Pipelines,
    /// The file of the driver's cache of compiled kernels.
    pub pipelines_file: Option<PathBuf>,
    pub tuner: Arc<Tuner>,
    /// The cost model that sliced submissions have learned.
    pub cost_model: Mutex<CostModel>,
    pub check_finite: AtomicBool,
    /// The runner of recordings.
    pub runner: &'static dyn Runner,
    /// Kept because it must be dropped after `queue`.
    pub _last_queue: LastQueue,
}

impl Machine {
    /// A machine without compiled kernels and cost model, and without files for them.
    pub fn new(
        watch: Arc<DeviceWatch>,
        queue: wgpu::Queue,
        pool: Pool,
        caps: DeviceCaps,
        tuner: Arc<Tuner>,
        runner: &'static dyn Runner,
    ) -> Self {
        Self {
            info: watch.device().adapter_info(),
            untested_caps: match runner.never() {
                Some(_) => caps.clone(),
                None => caps.clone().without_untested_matrices(),
            },
            caps,
            tested_caps: OnceLock::new(),
            pool,
            pipelines: Pipelines::default(),
            pipelines_file: None,
            tuner,
            cost_model: Mutex::default(),
            check_finite: AtomicBool::new(false),
            runner,
            _last_queue: LastQueue::new(&queue, &watch),
            watch,
            queue,
        }
    }

    pub fn device(&self) -> &wgpu::Device {
        self.watch.device()
    }

    /// The watch that all calls to the device go through.
    pub fn watch(&self) -> &Arc<DeviceWatch> {
        &self.watch
    }

    pub fn queue(&self) -> &wgpu::Queue {
        &self.queue
    }

    /// The pool that every buffer comes from.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// The device's caps, from which plans are made.
    pub fn caps(&self) -> &DeviceCaps {
        &self.caps
    }

    pub fn cost_model(&self) -> MutexGuard<'_, CostModel> {
        self.cost_model
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub fn checks_finite(&self) -> bool {
        self.check_finite.load(Ordering::Relaxed)
    }

    /// Whether recordings are counted, not run.
    pub fn is_dry(&self) -> bool {
        self.runner.never().is_some()
    }

    /// The compiled kernel.
    ///
    /// # Errors
    /// [`Error::Validation`](crate::Error::Validation) when the device refuses the shader,
    /// [`Error::DeviceLost`](crate::Error::DeviceLost).
    pub fn pipeline(&self, kernel: Kernel) -> Result<Arc<Pipeline>> {
        self.pipelines.get(&self.watch, kernel)
    }
}
