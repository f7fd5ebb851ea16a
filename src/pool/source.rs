//! Where buffers come from.

use std::fmt;
use std::sync::Arc;

use crate::wgpu;

/// Why a buffer could not be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CreateError {
    /// No memory: the pool gives up what it has cached and tries again.
    OutOfMemory,
    /// The device is lost, in its words: the pool gives up what it has cached and lends nothing any more.
    Lost(String),
    /// Anything else, in the device's words; trying again would not help.
    Refused(String),
}

/// Makes buffers for a [`Pool`](super::Pool): those of a device ([`DeviceSource`](super::DeviceSource)), or any other that a program wants to pool
/// by the same rules. [`SimulatedSource`](super::SimulatedSource) makes none at all and fails on purpose.
pub trait BufferSource<B = wgpu::Buffer>: Send + Sync + fmt::Debug {
    /// Makes a buffer of `bytes` (a multiple of 4, at most [`max_buffer_bytes`](Self::max_buffer_bytes)), mapped for
    /// writing when `usage` contains `MAP_WRITE`. Called without any lock of the pool, on the thread that asked for a lease.
    ///
    /// # Errors
    /// See [`CreateError`]. Nothing is left behind by a failed call.
    fn create(
        &self,
        label: &'static str,
        bytes: u64,
        usage: wgpu::BufferUsages,
    ) -> Result<B, CreateError>;

    /// Lets the device finish callbacks and free what nothing uses any more; with `wait` until all submitted work is
    /// done (browsers ignore that).
    fn poll(&self, wait: bool);

    /// Largest buffer in bytes.
    fn max_buffer_bytes(&self) -> u64;
}

impl<B, S: BufferSource<B> + ?Sized> BufferSource<B> for Arc<S> {
    fn create(
        &self,
        label: &'static str,
        bytes: u64,
        usage: wgpu::BufferUsages,
    ) -> Result<B, CreateError> {
        (**self).create(label, bytes, usage)
    }

    fn poll(&self, wait: bool) {
        (**self).poll(wait);
    }

    fn max_buffer_bytes(&self) -> u64 {
        (**self).max_buffer_bytes()
    }
}
