//! The handle to a buffer that the pool lent.

use std::fmt;
use std::sync::Arc;

use super::core::Core;
use super::shard::Request;
use super::sync::{AtomicU64, AtomicUsize, Ordering};

/// A buffer lent by a [`Pool`](super::Pool): one whole `wgpu::Buffer` that nobody else has. Clones share it; it goes back
/// when the last clone is dropped, on any thread, also after the pool or its device is gone. Contents are unspecified
/// when it is lent.
pub struct Lease<B = crate::wgpu::Buffer> {
    held: Arc<PooledBuffer<B>>,
    requested_bytes: u64,
    /// Size class of the request that the buffer was lent for: what others may be lent within the recording that holds it.
    /// The buffer itself may be larger, which depends on what was cached.
    class_bytes: u64,
    label: &'static str,
}

/// A buffer of a pool for as long as it exists, leased or not: leases come and go without an allocation. What each of them
/// touches comes first, to lie in as few cache lines as possible.
#[repr(C)]
pub(super) struct PooledBuffer<B> {
    /// Handles that keep the buffer from going back. Not the count of `Arc`s: two threads that drop the last two handles
    /// could each see the other's.
    handles: AtomicUsize,
    /// Shard and entry, packed; changes only while nobody leases the buffer.
    home: AtomicU64,
    core: Arc<Core<B>>,
    bytes: u64,
    usage: u32,
    /// Number of the buffer in its pool.
    serial: u64,
    buffer: B,
}

impl<B> PooledBuffer<B> {
    /// A new buffer, made for `request`.
    pub fn new(core: Arc<Core<B>>, buffer: B, request: &Request) -> Arc<Self> {
        Arc::new(Self {
            buffer,
            bytes: request.buffer_bytes,
            usage: request.usage,
            serial: core.next_serial(),
            core,
            home: AtomicU64::new(0),
            handles: AtomicUsize::new(1),
        })
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn usage(&self) -> u32 {
        self.usage
    }

    pub fn serial(&self) -> u64 {
        self.serial
    }

    /// Where the entry is. Both are read and written under the locks of the shards concerned, which order them.
    pub fn home(&self) -> (usize, u32) {
        let home = self.home.load(Ordering::Relaxed);
        ((home >> 32) as usize, home as u32)
    }

    pub fn set_home(&self, shard: usize, entry: u32) {
        let home = (shard as u64) << 32 | u64::from(entry);
        self.home.store(home, Ordering::Relaxed);
    }

    /// A lease begins. The lock of the shard orders this with the end of the lease before.
    pub fn lend(&self) {
        self.handles.store(1, Ordering::Relaxed);
    }
}

impl<B> Lease<B> {
    pub(super) fn new(held: Arc<PooledBuffer<B>>, request: &Request) -> Self {
        Self {
            held,
            requested_bytes: request.requested_bytes,
            class_bytes: request.buffer_bytes,
            label: request.label,
        }
    }

    /// The buffer. It may be larger than [`requested_bytes`](Self::requested_bytes): bind and copy that many only.
    pub fn buffer(&self) -> &B {
        &self.held.buffer
    }

    /// Bytes asked for, rounded up to 4: what a binding covers.
    pub fn requested_bytes(&self) -> u64 {
        self.requested_bytes
    }

    /// Bytes of the buffer.
    pub fn buffer_bytes(&self) -> u64 {
        self.held.bytes
    }

    /// What the lease is for.
    pub fn label(&self) -> &'static str {
        self.label
    }

    /// Number of the pool that lent it, unique in the process.
    pub fn pool_id(&self) -> u64 {
        self.held.core.id()
    }

    /// Number of the buffer: the same whenever the pool lends this buffer, never that of another buffer of the pool. What a
    /// cache of bind groups can be keyed by.
    pub fn buffer_serial(&self) -> u64 {
        self.held.serial
    }

    /// Whether this is the only handle. Nobody can make a second one behind the caller's back.
    pub(crate) fn is_unshared(&mut self) -> bool {
        self.held.handles.load(Ordering::Acquire) == 1
    }

    pub(super) fn usage(&self) -> u32 {
        self.held.usage
    }

    pub(super) fn class_bytes(&self) -> u64 {
        self.class_bytes
    }

    /// Ends this lease and begins another on the same buffer. Only for the sole holder.
    pub(super) fn relabel(&mut self, request: &Request) {
        self.held.core.relabel(&self.held, request);
        self.requested_bytes = request.requested_bytes;
        self.label = request.label;
    }

    /// Ends this lease while the device has yet to hand the buffer back to the host. Only the sole holder may call this;
    /// from others the lease comes back.
    pub(crate) fn suspend(mut self) -> Result<Pending<B>, Self> {
        if !self.is_unshared() {
            return Err(self);
        }
        self.held.core.suspend(&self.held);
        // The pending buffer is the handle that remains.
        self.held.handles.fetch_add(1, Ordering::Relaxed);
        Ok(Pending {
            held: self.held.clone(),
            usable: false,
        })
    }
}

impl<B> Clone for Lease<B> {
    fn clone(&self) -> Self {
        self.held.handles.fetch_add(1, Ordering::Relaxed);
        Self {
            held: self.held.clone(),
            requested_bytes: self.requested_bytes,
            class_bytes: self.class_bytes,
            label: self.label,
        }
    }
}

impl<B> Drop for Lease<B> {
    fn drop(&mut self) {
        // What other handles did comes before the return (and is seen by whoever leases next, through the lock).
        if self.held.handles.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.held.core.release(&self.held);
        }
    }
}

impl<B> fmt::Debug for Lease<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("label", &self.label)
            .field("requested_bytes", &self.requested_bytes)
            .field("buffer_bytes", &self.buffer_bytes())
            .finish()
    }
}

/// A buffer on its way back to the host: [`ready`](Self::ready) returns it to the pool, dropping it destroys it.
pub(crate) struct Pending<B = crate::wgpu::Buffer> {
    held: Arc<PooledBuffer<B>>,
    usable: bool,
}

impl<B> Pending<B> {
    /// The device handed the buffer back.
    pub fn ready(mut self) {
        self.usable = true;
    }
}

impl<B> Drop for Pending<B> {
    fn drop(&mut self) {
        self.held.core.resume(&self.held, self.usable);
    }
}

impl<B> fmt::Debug for Pending<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pending")
            .field("buffer_bytes", &self.held.bytes)
            .finish()
    }
}
