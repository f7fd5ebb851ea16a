//! Buffers of a device: the only place of the crate that calls `create_buffer`.

use super::source::{BufferSource, CreateError};
use crate::scope::{self, Caught};
use crate::wgpu;

/// Buffers of a device.
///
/// wgpu does not tell a creation that the device is lost: it returns a buffer that nothing can be done with. Whoever owns the
/// device's lost callback tells the pool with [`Pool::device_lost`](super::Pool::device_lost).
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
    ) -> Result<wgpu::Buffer, CreateError> {
        let create = || {
            self.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some(label),
                size: bytes,
                usage,
                mapped_at_creation: usage.contains(wgpu::BufferUsages::MAP_WRITE),
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
