//! The buffers of a dry run, a context that only counts ([`Context::dry_run`](crate::Context::dry_run)).
//!
//! Whoever wants to know what a training step will need could write a second program that adds up the sizes of all tensors,
//! and keep both alike for ever. Here the program itself is run, on a context whose recordings take leases from a pool and
//! count dispatches but do nothing else: no shader is compiled, no byte copied, and the pool's buffers are of four bytes,
//! whatever their leases say. What its pool measures is what the pool of a device will measure.

use crate::pool::{BufferSource, CreateError};

/// Buffers that stand for larger ones and are never used.
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
