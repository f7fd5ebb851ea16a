//! A submission: work that was submitted as a whole.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::Result;
use crate::watch::DeviceWatch;

/// Submitted work.
#[derive(Clone, Debug)]
pub struct Submission {
    watch: Arc<DeviceWatch>,
    index: wgpu::SubmissionIndex,
    is_done: Arc<AtomicBool>,
}

impl Submission {
    /// `is_done` is set when wgpu calls back for the submission.
    pub(super) fn new(
        watch: Arc<DeviceWatch>,
        index: wgpu::SubmissionIndex,
        is_done: Arc<AtomicBool>,
    ) -> Self {
        Self {
            watch,
            index,
            is_done,
        }
    }

    /// Blocks until the work is done (not in browsers).
    ///
    /// # Errors
    /// [`Error::DeviceLost`](crate::Error::DeviceLost) if the device is known to be lost, even if the work was done before.
    pub fn wait(&self) -> Result<()> {
        self.watch
            .wait_until(|_| self.is_done.load(Ordering::Acquire))?;
        self.watch.check_taken(&self.index)
    }
}
