//! Figures of a pool at one moment.

use std::fmt;

/// A quantity that rises and falls.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct Counter {
    /// The value now.
    pub current: u64,
    /// Peak since the pool was created, its peaks were reset, or the [scope](crate::Pool::scope) opened.
    pub peak: u64,
    /// Sum of all increases since the pool was created.
    pub total: u64,
}

/// Cached buffers destroyed, by cause; see [`EvictionCause`](crate::pool::EvictionCause).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize,
)]
#[non_exhaustive]
pub struct Evictions {
    /// Held bytes exceeded the policy's bound, which follows live bytes.
    pub retention: u64,
    /// Too many buffers, or too many bytes, were cached.
    pub cap: u64,
    /// A buffer was unused for too long.
    pub idle: u64,
    /// The application or a watermark said that memory was scarce.
    pub pressure: u64,
    /// Room was needed for a new buffer within the budget.
    pub budget: u64,
    /// The device ran out of memory.
    pub out_of_memory: u64,
    /// The application trimmed the pool.
    pub trim: u64,
}

impl Evictions {
    /// Sum over all causes.
    pub fn total(&self) -> u64 {
        self.retention
            + self.cap
            + self.idle
            + self.pressure
            + self.budget
            + self.out_of_memory
            + self.trim
    }
}

/// Counts since the pool was created, and what it holds now. The figures are taken under all locks of the pool. So the
/// [identities](Self::identities_hold) hold at any moment, and peaks are exact however many threads use the pool.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize,
)]
#[non_exhaustive]
pub struct PoolStats {
    /// Leases handed out.
    pub acquires: u64,
    /// Leases given back.
    pub releases: u64,
    /// Leases served by a cached buffer of the size that would otherwise be created.
    pub hits_exact: u64,
    /// Leases served by a larger cached buffer.
    pub hits_borrowed: u64,
    /// Leases served by a buffer that was cached in another thread's shard.
    pub hits_shared: u64,
    /// Leases served by a buffer that only the same recording still held.
    pub hits_within_recording: u64,
    /// Leases that needed a new buffer.
    pub misses: u64,
    /// Buffers created.
    pub creates: u64,
    /// Buffers destroyed.
    pub destroys: u64,
    /// Cached buffers destroyed, by cause.
    pub evictions: Evictions,
    /// Buffers created soon after one of the same usages and size class had been destroyed for retention.
    pub recreations: u64,
    /// Requests that succeeded only after memory or the budget had run out and the pool had waited for the device.
    pub recoveries: u64,
    /// Live leases.
    pub leases: Counter,
    /// Bytes that leases asked for.
    pub requested_bytes: Counter,
    /// Bytes of leased buffers.
    pub leased_bytes: Counter,
    /// Pending buffers: the device has to hand them back before they can be lent again.
    pub pending: Counter,
    /// Bytes of pending buffers.
    pub pending_bytes: Counter,
    /// Cached buffers.
    pub free: Counter,
    /// Bytes of cached buffers.
    pub free_bytes: Counter,
    /// Bytes of all buffers: leased, pending, cached, and destroyed but still in use by submitted work.
    pub held_bytes: Counter,
    /// Bytes of destroyed buffers that submitted work may still use. The device frees them when that work is done.
    pub draining_bytes: u64,
    /// Bytes of all buffers destroyed so far.
    pub destroyed_bytes: u64,
    /// Buffers of the application's that are taken in ([`Context::import_tensor`](crate::Context::import_tensor)). They count in
    /// no other figure.
    pub imported: Counter,
    /// Their bytes.
    pub imported_bytes: Counter,
}

impl PoolStats {
    /// Leases served without creating a buffer.
    pub fn hits(&self) -> u64 {
        self.hits_exact + self.hits_borrowed + self.hits_shared + self.hits_within_recording
    }

    /// Fraction of the leases that were hits, 0 to 1; 1 if there were no leases.
    pub fn hit_rate(&self) -> f64 {
        if self.acquires == 0 {
            return 1.0;
        }
        self.hits() as f64 / self.acquires as f64
    }

    /// Bytes of leased buffers beyond what was asked for.
    pub fn wasted_bytes(&self) -> u64 {
        self.leased_bytes.current - self.requested_bytes.current
    }

    /// Whether the figures agree with each other:
    /// `acquires == releases + leases`, `acquires == hits + misses`, `creates == destroys + leases + pending + free`, and
    /// `bytes created == bytes destroyed + bytes leased, pending and cached`.
    pub fn identities_hold(&self) -> bool {
        let live_bytes = self.leased_bytes.current + self.pending_bytes.current;
        self.acquires == self.releases + self.leases.current
            && self.acquires == self.hits() + self.misses
            && self.creates
                == self.destroys + self.leases.current + self.pending.current + self.free.current
            && self.held_bytes.total == self.destroyed_bytes + live_bytes + self.free_bytes.current
            && self.held_bytes.current == live_bytes + self.free_bytes.current + self.draining_bytes
    }
}

impl fmt::Display for PoolStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "leases  {} taken, {} given back, {} out (peak {}); {} hits ({} exact, {} borrowed, {} shared, {} within a recording), {} misses",
            self.acquires,
            self.releases,
            self.leases.current,
            self.leases.peak,
            self.hits(),
            self.hits_exact,
            self.hits_borrowed,
            self.hits_shared,
            self.hits_within_recording,
            self.misses
        )?;
        let evictions = &self.evictions;
        writeln!(
            f,
            "buffers {} created, {} destroyed, {} pending, {} cached; given up: {} retention, {} cap, {} idle, {} pressure, {} budget, {} out of memory, {} trim; {} made anew soon after",
            self.creates,
            self.destroys,
            self.pending.current,
            self.free.current,
            evictions.retention,
            evictions.cap,
            evictions.idle,
            evictions.pressure,
            evictions.budget,
            evictions.out_of_memory,
            evictions.trim,
            self.recreations
        )?;
        write!(
            f,
            "bytes   {} leased ({} asked for, peak {}), {} pending, {} cached, {} draining, {} held (peak {})",
            self.leased_bytes.current,
            self.requested_bytes.current,
            self.requested_bytes.peak,
            self.pending_bytes.current,
            self.free_bytes.current,
            self.draining_bytes,
            self.held_bytes.current,
            self.held_bytes.peak
        )?;
        if self.imported.total == 0 {
            return Ok(());
        }
        write!(
            f,
            "\nimported {} buffers of the application's (peak {}), {} bytes (peak {})",
            self.imported.current,
            self.imported.peak,
            self.imported_bytes.current,
            self.imported_bytes.peak
        )
    }
}
