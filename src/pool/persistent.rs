//! A buffer that is kept from call to call and grows.

use std::fmt;

use super::{Lease, Pool};
use crate::error::PoolError;
use crate::label::Label;
use crate::wgpu;

/// A buffer that a program keeps across calls, such as a key/value cache or a workspace, and that grows when a call needs
/// more. After growing it is another buffer, without the old contents: record a copy if you need them. Recordings that use
/// the old buffer keep it alive until they are submitted.
///
/// ```
/// use dilated_attention::pool::{PersistentBuffer, Pool, PoolOptions, STORAGE_USAGE};
/// # let (device, _) = dilated_attention::wgpu::Device::noop(&Default::default());
/// let pool = Pool::new(&device, PoolOptions::default());
/// let mut workspace = PersistentBuffer::new(&pool, "workspace", STORAGE_USAGE);
/// let small = workspace.at_least(1000)?.buffer_serial();
/// assert_eq!(workspace.at_least(500)?.buffer_serial(), small);
/// let used_by_a_recording = workspace.at_least(1000)?.clone();
/// assert_ne!(workspace.at_least(100_000)?.buffer_serial(), small);
/// assert_eq!(pool.stats().leases.current, 2); // the old one as well
/// # drop(used_by_a_recording);
/// # Ok::<(), dilated_attention::Error>(())
/// ```
pub struct PersistentBuffer<B = wgpu::Buffer> {
    pool: Pool<B>,
    label: Label,
    usage: wgpu::BufferUsages,
    lease: Option<Lease<B>>,
}

impl<B> PersistentBuffer<B> {
    /// A persistent buffer that has no buffer yet.
    pub fn new(pool: &Pool<B>, label: impl Into<Label>, usage: wgpu::BufferUsages) -> Self {
        Self {
            pool: pool.clone(),
            label: label.into(),
            usage,
            lease: None,
        }
    }

    /// The buffer, grown to at least `bytes` bytes. When it grows it at least doubles, so that growing in small steps takes
    /// few copies. [`Lease::requested_bytes`] tells its size.
    ///
    /// # Errors
    /// As [`Pool::acquire`]. The old buffer then stays.
    pub fn at_least(&mut self, bytes: u64) -> Result<&Lease<B>, PoolError> {
        let lease = match self.lease.take_if(|lease| lease.requested_bytes() >= bytes) {
            Some(lease) => lease,
            None => self.grown(bytes)?,
        };
        Ok(self.lease.insert(lease))
    }

    fn grown(&self, bytes: u64) -> Result<Lease<B>, PoolError> {
        let have_bytes = self.lease.as_ref().map_or(0, Lease::requested_bytes);
        let doubled = bytes.max(have_bytes.saturating_mul(2));
        // Doubling may exceed the device's limit or the budget where `bytes` does not.
        self.pool
            .acquire(&self.label, doubled, self.usage)
            .or_else(|_| self.pool.acquire(&self.label, bytes, self.usage))
    }

    /// The buffer, if there is one.
    pub fn lease(&self) -> Option<&Lease<B>> {
        self.lease.as_ref()
    }

    /// Gives the buffer back.
    pub fn clear(&mut self) {
        self.lease = None;
    }
}

impl<B> fmt::Debug for PersistentBuffer<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PersistentBuffer")
            .field("label", &self.label)
            .field("lease", &self.lease)
            .finish_non_exhaustive()
    }
}
