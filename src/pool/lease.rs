//! The handle to a buffer that the pool lent.

use std::fmt;
use std::sync::{Arc, Weak};

use super::Shared;
use super::state::{Key, Slot};

/// A buffer lent by a [`Pool`](super::Pool): one whole `wgpu::Buffer` that nobody else has. Clones share it; it goes back
/// when the last clone is dropped, on any thread, also after the pool or its device is gone. Contents are unspecified
/// when it is lent.
#[derive(Clone)]
pub struct Lease {
    inner: Arc<Inner>,
}

struct Inner {
    /// Taken only by `drop` and by [`Lease::suspend`].
    slot: Option<Slot<wgpu::Buffer>>,
    requested_bytes: u64,
    label: &'static str,
    pool: Weak<Shared>,
    pool_id: u64,
}

impl Lease {
    pub(super) fn new(
        slot: Slot<wgpu::Buffer>,
        requested_bytes: u64,
        label: &'static str,
        pool: &Arc<Shared>,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                slot: Some(slot),
                requested_bytes,
                label,
                pool: Arc::downgrade(pool),
                pool_id: pool.id,
            }),
        }
    }

    fn slot(&self) -> &Slot<wgpu::Buffer> {
        match &self.inner.slot {
            Some(slot) => slot,
            None => unreachable!("the slot is taken only when no lease is left"),
        }
    }

    /// The buffer. It may be larger than [`requested_bytes`](Self::requested_bytes): bind and copy that many only.
    pub fn buffer(&self) -> &wgpu::Buffer {
        &self.slot().buffer
    }

    /// Bytes asked for, rounded up to 4: what a binding covers.
    pub fn requested_bytes(&self) -> u64 {
        self.inner.requested_bytes
    }

    /// Bytes of the buffer.
    pub fn class_bytes(&self) -> u64 {
        self.slot().key.class_bytes
    }

    /// What the lease is for.
    pub fn label(&self) -> &'static str {
        self.inner.label
    }

    /// Number of the pool that lent it.
    pub(crate) fn pool_id(&self) -> u64 {
        self.inner.pool_id
    }

    /// Identity of the lease while any handle of it lives.
    pub(crate) fn address(&self) -> usize {
        Arc::as_ptr(&self.inner) as usize
    }

    /// Whether this is the only handle. Nobody can make a second one behind the caller's back.
    pub(crate) fn is_unshared(&mut self) -> bool {
        Arc::get_mut(&mut self.inner).is_some()
    }

    pub(super) fn key(&self) -> Key {
        self.slot().key
    }

    /// Ends this lease and begins another on the same buffer. Only for the sole holder.
    pub(super) fn relabel(&mut self, requested_bytes: u64, label: &'static str) -> bool {
        let Some(inner) = Arc::get_mut(&mut self.inner) else {
            return false;
        };
        let old = (inner.requested_bytes, inner.label);
        inner.requested_bytes = requested_bytes;
        inner.label = label;
        if let Some(pool) = inner.pool.upgrade() {
            pool.lock().relabel(old, requested_bytes, label);
        }
        true
    }

    /// Ends this lease while the device has yet to hand the buffer back to the host. Only the sole holder may call this;
    /// from others the lease comes back.
    pub(crate) fn suspend(self) -> Result<Pending, Self> {
        let mut inner = match Arc::try_unwrap(self.inner) {
            Ok(inner) => inner,
            Err(inner) => return Err(Self { inner }),
        };
        let slot = inner.slot.take();
        let pool = std::mem::take(&mut inner.pool);
        if let (Some(slot), Some(pool)) = (&slot, pool.upgrade()) {
            pool.lock()
                .suspend(slot.key, inner.requested_bytes, inner.label);
        }
        Ok(Pending { slot, pool })
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let (Some(slot), Some(pool)) = (self.slot.take(), self.pool.upgrade()) else {
            return;
        };
        // What the pool does not keep is dropped here, outside its lock.
        let dropped = pool.lock().release(slot, self.requested_bytes, self.label);
        drop(dropped);
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("label", &self.label())
            .field("requested_bytes", &self.requested_bytes())
            .field("class_bytes", &self.class_bytes())
            .finish()
    }
}

/// A buffer on its way back to the host: [`ready`](Self::ready) returns it to the pool, dropping it destroys it.
#[derive(Debug)]
pub(crate) struct Pending {
    slot: Option<Slot<wgpu::Buffer>>,
    pool: Weak<Shared>,
}

impl Pending {
    /// The device handed the buffer back.
    pub fn ready(mut self) {
        if let (Some(slot), Some(pool)) = (self.slot.take(), self.pool.upgrade()) {
            let dropped = pool.lock().resume(slot);
            drop(dropped);
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let (Some(slot), Some(pool)) = (self.slot.take(), self.pool.upgrade()) {
            pool.lock().abandon(slot.key);
        }
    }
}
