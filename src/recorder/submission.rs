//! Work that was submitted.

use crate::error::{Error, Result};

/// Submitted work.
#[derive(Clone, Debug)]
pub struct Submission {
    device: wgpu::Device,
    index: wgpu::SubmissionIndex,
}

impl Submission {
    pub(super) fn new(device: wgpu::Device, index: wgpu::SubmissionIndex) -> Self {
        Self { device, index }
    }

    /// Blocks until the work is done (not in browsers).
    ///
    /// # Errors
    /// [`Error::DeviceLost`].
    pub fn wait(&self) -> Result<()> {
        let poll = wgpu::PollType::Wait {
            submission_index: Some(self.index.clone()),
            timeout: None,
        };
        match self.device.poll(poll) {
            Ok(_) => Ok(()),
            Err(error) => Err(Error::DeviceLost {
                reason: error.to_string(),
            }),
        }
    }
}
