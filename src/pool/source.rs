//! Where buffers come from: the only place of the crate that calls `create_buffer`.

use std::fmt;

use crate::scope::{self, Caught};

/// Why a buffer could not be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CreateError {
    /// No memory: the pool gives up what it has cached and tries again.
    OutOfMemory,
    /// Anything else, in the device's words; trying again would not help.
    Refused(String),
}

/// Makes buffers for a [`Pool`](super::Pool). Tests put sources of their own here, which fail on purpose.
pub trait BufferSource: Send + Sync + fmt::Debug {
    /// Makes a buffer of `bytes` (a multiple of 4, at most [`max_buffer_bytes`](Self::max_buffer_bytes)), mapped for
    /// writing when `mapped`.
    ///
    /// # Errors
    /// See [`CreateError`]. Nothing is left behind by a failed call.
    fn create(
        &self,
        label: &'static str,
        bytes: u64,
        usage: wgpu::BufferUsages,
        mapped: bool,
    ) -> Result<wgpu::Buffer, CreateError>;

    /// Lets the device finish callbacks and free what nothing uses any more; with `wait` until all submitted work is
    /// done (browsers ignore that).
    fn poll(&self, wait: bool);

    /// Largest buffer in bytes.
    fn max_buffer_bytes(&self) -> u64;
}

/// Buffers of a device.
#[derive(Clone, Debug)]
pub struct DeviceSource {
    device: wgpu::Device,
    max_buffer_bytes: u64,
}

impl DeviceSource {
    /// Buffers of `device`.
    pub fn new(device: wgpu::Device) -> Self {
        let max_buffer_bytes = device.limits().max_buffer_size;
        Self {
            device,
            max_buffer_bytes,
        }
    }
}

impl BufferSource for DeviceSource {
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that creates buffers"
    )]
    fn create(
        &self,
        label: &'static str,
        bytes: u64,
        usage: wgpu::BufferUsages,
        mapped: bool,
    ) -> Result<wgpu::Buffer, CreateError> {
        let create = || {
            self.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some(label),
                size: bytes,
                usage,
                mapped_at_creation: mapped,
            })
        };
        scope::catch(&self.device, create).map_err(|caught| match caught {
            Caught::OutOfMemory => CreateError::OutOfMemory,
            Caught::Refused(reason) => CreateError::Refused(reason),
        })
    }

    fn poll(&self, wait: bool) {
        let poll = if wait {
            wgpu::PollType::wait_indefinitely()
        } else {
            wgpu::PollType::Poll
        };
        // A lost device cannot be waited for; whoever needs its results learns of the loss from the mapping.
        let _ = self.device.poll(poll);
    }

    fn max_buffer_bytes(&self) -> u64 {
        self.max_buffer_bytes
    }
}
