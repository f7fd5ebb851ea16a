//! Buffers of a device: the only place of the crate that calls `create_buffer`.

use std::sync::Arc;

use super::source::{BufferSource, CreateError};
use crate::scope::{self, Caught};
use crate::watch::DeviceWatch;
use crate::wgpu;

/// Buffers of a device.
///
/// On a lost device, wgpu does not fail a creation, but returns an unusable buffer. So the owner of the device-lost callback
/// has to call [`Pool::device_lost`](super::Pool::device_lost). A loss that a poll finds is known without that.
#[derive(Clone, Debug)]
pub struct DeviceSource {
    watch: Arc<DeviceWatch>,
    max_buffer_bytes: u64,
}

impl DeviceSource {
    /// Buffers of `device`.
    pub fn new(device: wgpu::Device) -> Self {
        Self::watched(DeviceWatch::new(device))
    }

    /// Buffers of the watched device.
    pub(crate) fn watched(watch: Arc<DeviceWatch>) -> Self {
        let max_buffer_bytes = watch.device().limits().max_buffer_size;
        Self {
            watch,
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
        label: &str,
        bytes: u64,
        usage: wgpu::BufferUsages,
    ) -> Result<wgpu::Buffer, CreateError> {
        let create = || {
            self.watch.device().create_buffer(&wgpu::BufferDescriptor {
                label: Some(label),
                size: bytes,
                usage,
                mapped_at_creation: usage.contains(wgpu::BufferUsages::MAP_WRITE),
            })
        };
        scope::catch(&self.watch, create).map_err(|caught| match caught {
            Caught::OutOfMemory => CreateError::OutOfMemory,
            Caught::Refused(reason) => CreateError::Refused(reason),
            Caught::Lost(reason) => CreateError::Lost(reason),
        })
    }

    fn poll(&self, wait: bool) {
        // A loss shows at the next creation.
        let _ = match wait {
            true => self.watch.wait_in_driver(),
            false => self.watch.poll(),
        };
    }

    fn max_buffer_bytes(&self) -> u64 {
        self.max_buffer_bytes
    }
}
