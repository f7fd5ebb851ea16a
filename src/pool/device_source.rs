//! Buffers of a device: the only place of the crate that calls `create_buffer`.

use std::sync::Arc;

use super::source::{BufferSource, CreateError};
use crate::scope::{self, Caught};
use crate::watch::DeviceWatch;
use crate::wgpu;

/// Buffers of a device.
///
/// wgpu does not tell a creation that the device is lost: it returns a buffer that nothing can be done with. Whoever owns the
/// device's lost callback tells the pool with [`Pool::device_lost`](super::Pool::device_lost); what a poll finds, it knows by
/// itself.
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

    /// Buffers of the device that is watched.
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
        label: &'static str,
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
        // Of a loss the next creation tells.
        let _ = match wait {
            true => self.watch.wait_in_driver(),
            false => self.watch.poll(),
        };
    }

    fn max_buffer_bytes(&self) -> u64 {
        self.max_buffer_bytes
    }
}
