//! The handle to a buffer that the pool lent.

use std::fmt;
use std::sync::Arc;

use super::core::Core;
use super::shard::Request;
use super::sync::{AtomicU64, AtomicUsize, Ordering};
use crate::label::Label;

/// A buffer lent by a [`Pool`](super::Pool): one whole `wgpu::Buffer` that no other lease has. Clones share it. It goes back
/// when the last clone is dropped, on any thread, even after the pool or its device is gone. Its contents are unspecified at
/// first.
pub struct Lease<B = crate::wgpu::Buffer> {
    held: Arc<PooledBuffer<B>>,
    requested_bytes: u64,
    /// Size class of the request that the buffer was lent for. It decides which later requests of the same recording the
    /// lease may serve. The buffer itself may be larger, depending on what was cached.
    class_bytes: u64,
    label: Label,
}

/// Home of a buffer that the application owns.
const NOWHERE: u64 = u64::MAX;

/// A buffer of a pool, leased or not, for as long as it exists, so that leases come and go without an allocation. The fields
/// that each lease touches come first, so that they share cache lines.
#[repr(C)]
pub(super) struct PooledBuffer<B> {
    /// Number of handles that keep the buffer from going back. The count of the `Arc` will not do: two threads that drop the
    /// last two handles could each see the other's.
    handles: AtomicUsize,
    /// Index of the shard and of the entry in it, packed, or [`NOWHERE`]. Changes only while the buffer is not leased.
    home: AtomicU64,
    core: Arc<Core<B>>,
    bytes: u64,
    usage: u32,
    /// Serial number of the buffer in its pool.
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

    /// A buffer of the application's.
    pub fn imported(core: Arc<Core<B>>, buffer: B, request: &Request) -> Arc<Self> {
        let imported = Self::new(core, buffer, request);
        imported.home.store(NOWHERE, Ordering::Relaxed);
        imported
    }

    fn is_imported(&self) -> bool {
        self.home.load(Ordering::Relaxed) == NOWHERE
    }

    pub fn buffer(&self) -> &B {
        &self.buffer
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

    /// The shard and the entry of the buffer. The locks of the shards concerned order reads and writes.
    pub fn home(&self) -> (usize, u32) {
        let home = self.home.load(Ordering::Relaxed);
        ((home >> 32) as usize, home as u32)
    }

    pub fn set_home(&self, shard: usize, entry: u32) {
        let home = (shard as u64) << 32 | u64::from(entry);
        self.home.store(home, Ordering::Relaxed);
    }

    /// Begins a lease. The shard's lock orders this after the end of the lease before.
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
            label: request.label.clone(),
        }
    }

    /// The buffer. It may be larger than [`requested_bytes`](Self::requested_bytes), so bind and copy only that many bytes.
    pub fn buffer(&self) -> &B {
        &self.held.buffer
    }

    /// Bytes asked for, rounded up to a multiple of 4. A binding should cover this many; [`binding`](Self::binding) does.
    pub fn requested_bytes(&self) -> u64 {
        self.requested_bytes
    }

    /// Bytes of the buffer.
    pub fn buffer_bytes(&self) -> u64 {
        self.held.bytes
    }

    /// What the lease is for.
    pub fn label(&self) -> &Label {
        &self.label
    }

    /// Number of the pool that lent the buffer, unique in the process.
    pub fn pool_id(&self) -> u64 {
        self.held.core.id()
    }

    /// Serial number of the buffer: the same whenever the pool lends this buffer, and never that of another buffer of the
    /// pool. A cache of bind groups can use it as a key.
    pub fn buffer_serial(&self) -> u64 {
        self.held.serial
    }

    /// Whether this is the only handle, so that the buffer may serve again. `&mut self` keeps others from cloning it
    /// meanwhile. An imported buffer is shared with the application.
    pub(crate) fn is_unshared(&mut self) -> bool {
        self.held.handles.load(Ordering::Acquire) == 1 && !self.held.is_imported()
    }

    /// Usages of the buffer.
    pub fn usage(&self) -> crate::wgpu::BufferUsages {
        crate::wgpu::BufferUsages::from_bits_retain(self.held.usage)
    }

    pub(super) fn class_bytes(&self) -> u64 {
        self.class_bytes
    }

    /// Ends this lease and begins another on the same buffer. Only the sole holder may call this.
    pub(super) fn relabel(&mut self, request: &Request) {
        self.held.core.relabel(&self.held, request);
        self.requested_bytes = request.requested_bytes;
        self.label = request.label.clone();
    }

    /// Ends this lease before the device has handed the buffer back to the host. If there are other handles, the lease is
    /// returned as the error.
    pub(crate) fn suspend(mut self) -> Result<Pending<B>, Self> {
        if !self.is_unshared() {
            return Err(self);
        }
        self.held.core.suspend(&self.held);
        // The pending buffer keeps one handle.
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
            label: self.label.clone(),
        }
    }
}

impl<B> Drop for Lease<B> {
    fn drop(&mut self) {
        // Whatever other handles did happens before the return. The shard's lock makes it visible to the next lease.
        if self.held.handles.fetch_sub(1, Ordering::AcqRel) == 1 {
            match self.held.is_imported() {
                false => self.held.core.release(&self.held),
                true => self.held.core.end_import(&self.held),
            }
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

/// A buffer on its way back to the host. [`ready`](Self::ready) returns it to the pool; dropping it destroys the buffer.
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
