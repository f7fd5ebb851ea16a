//! How the figures of a pool follow from its counts.

use super::ledger::{Ledger, Watch};
use super::shard::{Counts, Gauge, Gauges};
use crate::pool_figures::{Counter, PoolStats};

pub(super) fn stats(counts: &Counts, gauges: &Gauges, watch: &Watch, ledger: &Ledger) -> PoolStats {
    let counter = |gauge: Gauge, total| Counter {
        current: gauges[gauge as usize],
        peak: watch.peaks[gauge as usize],
        total,
    };
    let live_bytes = gauges[Gauge::LiveBytes as usize];
    let free_bytes = gauges[Gauge::FreeBytes as usize];
    PoolStats {
        acquires: counts.acquires,
        releases: counts.releases,
        hits_exact: counts.hits_exact,
        hits_borrowed: counts.hits_borrowed,
        hits_shared: counts.hits_shared,
        hits_within_recording: counts.hits_within_recording,
        misses: counts.misses,
        creates: counts.creates,
        destroys: counts.destroys,
        evictions: ledger.evictions,
        recreations: ledger.recreations,
        recoveries: ledger.recoveries,
        leases: counter(Gauge::Leases, counts.acquires),
        requested_bytes: counter(Gauge::RequestedBytes, counts.requested_bytes),
        leased_bytes: counter(Gauge::LeasedBytes, counts.leased_bytes),
        pending: counter(Gauge::Pending, counts.suspends),
        pending_bytes: counter(Gauge::PendingBytes, counts.suspended_bytes),
        free: counter(Gauge::Free, counts.frees),
        free_bytes: counter(Gauge::FreeBytes, counts.freed_bytes),
        held_bytes: Counter {
            current: live_bytes + free_bytes + ledger.draining_bytes,
            peak: watch.peak_held_bytes,
            total: counts.created_bytes,
        },
        draining_bytes: ledger.draining_bytes,
        destroyed_bytes: counts.destroyed_bytes,
        imported: ledger.imports.buffers,
        imported_bytes: ledger.imports.bytes,
    }
}

impl Counts {
    pub(super) fn add(&mut self, other: &Self) {
        // Named one by one, so that a new count cannot be forgotten.
        let Self {
            acquires,
            releases,
            hits_exact,
            hits_borrowed,
            hits_shared,
            hits_within_recording,
            misses,
            creates,
            destroys,
            requested_bytes,
            leased_bytes,
            created_bytes,
            destroyed_bytes,
            suspends,
            suspended_bytes,
            frees,
            freed_bytes,
        } = other;
        self.acquires += acquires;
        self.releases += releases;
        self.hits_exact += hits_exact;
        self.hits_borrowed += hits_borrowed;
        self.hits_shared += hits_shared;
        self.hits_within_recording += hits_within_recording;
        self.misses += misses;
        self.creates += creates;
        self.destroys += destroys;
        self.requested_bytes += requested_bytes;
        self.leased_bytes += leased_bytes;
        self.created_bytes += created_bytes;
        self.destroyed_bytes += destroyed_bytes;
        self.suspends += suspends;
        self.suspended_bytes += suspended_bytes;
        self.frees += frees;
        self.freed_bytes += freed_bytes;
    }
}
