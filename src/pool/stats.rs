//! Figures of a pool at one moment.

use std::fmt;

/// Counters since the pool was made, and what it holds now. Taken under one lock, so the identities hold at any moment:
/// `acquires == releases + leased` and `creates == destroys + leased + pending + free`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct PoolStats {
    /// Leases handed out.
    pub acquires: u64,
    /// Leases given back.
    pub releases: u64,
    /// Leases served by a cached buffer of the very class.
    pub hits_exact: u64,
    /// Leases served by a cached buffer of a larger class.
    pub hits_borrowed: u64,
    /// Leases served by a buffer that only the same recording still held.
    pub hits_within_recording: u64,
    /// Leases that needed a new buffer.
    pub misses: u64,
    /// Buffers created.
    pub creates: u64,
    /// Buffers given back to the device.
    pub destroys: u64,
    /// Cached buffers given up to keep what is held near what is live.
    pub evictions_retention: u64,
    /// Cached buffers given up to stay within the budget.
    pub evictions_budget: u64,
    /// Cached buffers given up because the device had no memory.
    pub evictions_out_of_memory: u64,
    /// Cached buffers given up by `trim`.
    pub evictions_trim: u64,
    /// Requests that succeeded after the device had run out of memory, or the budget out of room, and was waited for.
    pub out_of_memory_recoveries: u64,
    /// Buffers leased now.
    pub leased: u64,
    /// Buffers that wait for the device before they can be reused now.
    pub pending: u64,
    /// Buffers cached now.
    pub free: u64,
    /// Bytes asked for by the leases of now.
    pub leased_requested_bytes: u64,
    /// Bytes of the buffers leased now.
    pub leased_bytes: u64,
    /// Bytes of the buffers pending now.
    pub pending_bytes: u64,
    /// Bytes of the buffers cached now.
    pub free_bytes: u64,
    /// Largest number of bytes asked for by leases of one moment, since the last [`Pool::reset_peaks`](super::Pool::reset_peaks).
    pub peak_leased_requested_bytes: u64,
    /// Largest number of bytes held at one moment, since the last [`Pool::reset_peaks`](super::Pool::reset_peaks).
    pub peak_held_bytes: u64,
}

impl PoolStats {
    /// Bytes of all buffers that exist: leased, pending and cached.
    pub fn held_bytes(&self) -> u64 {
        self.leased_bytes + self.pending_bytes + self.free_bytes
    }

    /// Leases served without creating a buffer.
    pub fn hits(&self) -> u64 {
        self.hits_exact + self.hits_borrowed + self.hits_within_recording
    }

    /// Whether the identities of the type's documentation hold.
    pub fn identities_hold(&self) -> bool {
        self.acquires == self.releases + self.leased
            && self.acquires == self.hits() + self.misses
            && self.creates == self.destroys + self.leased + self.pending + self.free
    }
}

impl fmt::Display for PoolStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "leases  {} taken, {} given back, {} out; {} hits ({} exact, {} borrowed, {} within a recording), {} misses",
            self.acquires,
            self.releases,
            self.leased,
            self.hits(),
            self.hits_exact,
            self.hits_borrowed,
            self.hits_within_recording,
            self.misses
        )?;
        writeln!(
            f,
            "buffers {} created, {} destroyed, {} leased, {} pending, {} cached; given up: {} retention, {} budget, {} out of memory, {} trim",
            self.creates,
            self.destroys,
            self.leased,
            self.pending,
            self.free,
            self.evictions_retention,
            self.evictions_budget,
            self.evictions_out_of_memory,
            self.evictions_trim
        )?;
        write!(
            f,
            "bytes   {} leased ({} asked for, peak {}), {} pending, {} cached, {} held (peak {})",
            self.leased_bytes,
            self.leased_requested_bytes,
            self.peak_leased_requested_bytes,
            self.pending_bytes,
            self.free_bytes,
            self.held_bytes(),
            self.peak_held_bytes
        )
    }
}

/// The state of a pool as an error carries it: the figures, and who holds the most.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolReport {
    /// The figures.
    pub stats: PoolStats,
    /// Labels of the live leases with their number and the bytes asked for, largest first, at most eight.
    pub largest: Vec<LabelUse>,
}

/// What the leases of one label hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LabelUse {
    /// The label.
    pub label: &'static str,
    /// Live leases.
    pub leases: u64,
    /// Bytes they asked for.
    pub requested_bytes: u64,
}

impl fmt::Display for PoolReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.stats)?;
        for entry in &self.largest {
            write!(
                f,
                "\nheld by '{}': {} bytes in {} leases",
                entry.label, entry.requested_bytes, entry.leases
            )?;
        }
        Ok(())
    }
}
