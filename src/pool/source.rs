//! Where buffers come from.

use std::fmt;
use std::sync::Arc;

use crate::wgpu;

/// Why a buffer could not be created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CreateError {
    /// The device ran out of memory. The pool destroys what it has cached and tries again.
    OutOfMemory,
    /// The device is lost, with its message. The pool destroys what it has cached and lends nothing any more.
    Lost(String),
    /// Any other refusal, with the device's message. Trying again would not help.
    Refused(String),
}

/// Creates buffers for a [`Pool`](super::Pool): those of a device ([`DeviceSource`](super::DeviceSource)), or any other kind
/// that a program wants to pool.
pub trait BufferSource<B = wgpu::Buffer>: Send + Sync + fmt::Debug {
    /// Creates a buffer of `bytes` bytes (a multiple of 4, at most [`max_buffer_bytes`](Self::max_buffer_bytes)), mapped for
    /// writing if `usage` contains `MAP_WRITE`. The pool calls this without holding a lock, on the thread that asked for a
    /// lease.
    ///
    /// # Errors
    /// See [`CreateError`]. A failed call leaves nothing behind.
    fn create(&self, label: &str, bytes: u64, usage: wgpu::BufferUsages) -> Result<B, CreateError>;

    /// Lets the device run callbacks and free unused memory. With `wait`, first waits until all submitted work is done (not
    /// in browsers).
    fn poll(&self, wait: bool);

    /// Bytes of the largest buffer.
    fn max_buffer_bytes(&self) -> u64;
}

impl<B, S: BufferSource<B> + ?Sized> BufferSource<B> for Arc<S> {
    fn create(&self, label: &str, bytes: u64, usage: wgpu::BufferUsages) -> Result<B, CreateError> {
        (**self).create(label, bytes, usage)
    }

    fn poll(&self, wait: bool) {
        (**self).poll(wait);
    }

    fn max_buffer_bytes(&self) -> u64 {
        (**self).max_buffer_bytes()
    }
}
