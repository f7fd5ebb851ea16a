//! What recordings run on.

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
/// of one and knows how to make it.
#[derive(Debug)]
pub(crate) struct Machine {
    pub watch: Arc<DeviceWatch>,
    pub queue: wgpu::Queue,
    pub info: wgpu::AdapterInfo,
    pub caps: DeviceCaps,
    /// The capabilities after the self test of the cooperative matrices.
    pub tested_caps: OnceLock<DeviceCaps>,
    pub pool: Pool,
    pub pipelines: Pipelines,
    /// Where the driver's cache of compiled kernels is kept.
    pub pipelines_file: Option<PathBuf>,
    pub tuner: Arc<Tuner>,
    /// What sliced submissions have learned of the kernels.
    pub cost_model: Mutex<CostModel>,
    pub check_finite: AtomicBool,
    /// Who runs recordings.
    pub runner: &'static dyn Runner,
    /// Kept for how it is dropped, after `queue`.
    pub _last_queue: LastQueue,
}

impl Machine {
    /// Without compiled kernels, without a cost model, without a file for either.
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

    /// What all calls to the device go through.
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

    /// What plans are made from.
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
