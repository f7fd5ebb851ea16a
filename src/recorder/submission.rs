//! Work that was submitted.

use std::sync::Arc;

use crate::error::Result;
use crate::watch::DeviceWatch;

/// Submitted work.
#[derive(Clone, Debug)]
pub struct Submission {
    watch: Arc<DeviceWatch>,
    index: wgpu::SubmissionIndex,
}

impl Submission {
    pub(super) fn new(watch: Arc<DeviceWatch>, index: wgpu::SubmissionIndex) -> Self {
        Self { watch, index }
    }

    /// Blocks until the work is done (not in browsers).
    ///
    /// # Errors
    /// [`Error::DeviceLost`](crate::Error::DeviceLost) when the device is known to be lost, also if the work was done before.
    pub fn wait(&self) -> Result<()> {
        self.watch.wait_for(&self.index)
    }
}
