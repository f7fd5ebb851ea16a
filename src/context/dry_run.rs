//! The buffers of a dry run, a context without a device ([`Context::dry_run`](crate::Context::dry_run)).
//!
//! A dry run answers what a model or a training step will need, by running the same code without a device. Recordings take leases
//! from a pool and count dispatches, and do nothing else: no shader is compiled and no byte copied. The pool's buffers have four
//! bytes, whatever the size of their leases. So the figures of this pool are those that the pool of a real device would have, and
//! no second program has to compute them.

use crate::pool::{BufferSource, CreateError};

/// Makes buffers of four bytes in the place of larger ones. They are never used.
#[derive(Debug)]
pub(super) struct DryRunSource {
    pub device: wgpu::Device,
    pub max_buffer_bytes: u64,
}

impl BufferSource for DryRunSource {
    #[expect(
        clippy::disallowed_methods,
        reason = "a buffer source, like the pool's own"
    )]
    fn create(
        &self,
        label: &str,
        _: u64,
        usage: wgpu::BufferUsages,
    ) -> Result<wgpu::Buffer, CreateError> {
        Ok(self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(label),
            size: 4,
            usage,
            mapped_at_creation: false,
        }))
    }

    fn poll(&self, _: bool) {}

    fn max_buffer_bytes(&self) -> u64 {
        self.max_buffer_bytes
    }
}
