//! A buffer source that runs out of memory on purpose.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use dilated_attention::pool::{BufferSource, CreateError, DeviceSource};
use dilated_attention::wgpu::{self, BufferUsages};

/// Fails where told to; counts what it made.
#[derive(Debug)]
pub struct FailingSource {
    source: DeviceSource,
    created: AtomicU64,
    /// The creation that fails, counted from 0.
    fail_at: u64,
    /// How many creations from there on fail.
    failures: AtomicI64,
}

impl FailingSource {
    /// Buffers of `device`, but that `failures` creations from number `fail_at` on run out of memory.
    pub fn new(device: &wgpu::Device, fail_at: u64, failures: i64) -> Arc<Self> {
        Arc::new(Self {
            source: DeviceSource::new(device.clone()),
            created: AtomicU64::new(0),
            fail_at,
            failures: AtomicI64::new(failures),
        })
    }
}

impl BufferSource for FailingSource {
    fn create(
        &self,
        label: &str,
        bytes: u64,
        usage: BufferUsages,
    ) -> Result<wgpu::Buffer, CreateError> {
        let number = self.created.fetch_add(1, Ordering::Relaxed);
        if number >= self.fail_at && self.failures.fetch_sub(1, Ordering::Relaxed) > 0 {
            return Err(CreateError::OutOfMemory);
        }
        self.source.create(label, bytes, usage)
    }

    fn poll(&self, wait: bool) {
        self.source.poll(wait);
    }

    fn max_buffer_bytes(&self) -> u64 {
        self.source.max_buffer_bytes()
    }
}
