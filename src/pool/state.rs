//! The lists and counters of a pool: plain data, no GPU, no lock. [`Pool`](super::Pool) drives it under its lock, tests
//! drive it with numbers for buffers.
//!
//! A buffer is in exactly one place:
//!
//! ```text
//!            create                take                    release
//!   (device) ------> leased <------------------ free <---------------- leased
//!                       |                        ^  |
//!                       | suspend        resume  |  | evict
//!                       +-----> pending ---------+  +------> (device)
//! ```

use std::collections::{BTreeMap, HashMap};

use super::policy::Policy;
use super::stats::{LabelUse, PoolReport, PoolStats};

/// What makes two buffers interchangeable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key {
    /// Bits of the usage set.
    pub usage: u32,
    /// Size of the buffer.
    pub class_bytes: u64,
}

/// A buffer with the key that it goes back under.
#[derive(Debug)]
pub(super) struct Slot<B> {
    pub buffer: B,
    pub key: Key,
}

#[derive(Debug)]
struct FreeSlot<B> {
    slot: Slot<B>,
    /// When it was released, in acquires and releases of the pool.
    released_at: u64,
}

/// Why a cached buffer is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Eviction {
    Retention,
    Budget,
    OutOfMemory,
    Trim,
}

/// Acquires after which the peak of what was live is forgotten (half of it: two windows overlap).
const WINDOW_ACQUIRES: u64 = 1024;

#[derive(Debug)]
pub(super) struct State<B> {
    policy: Policy,
    /// Cached buffers; the last of a list was released last and is taken first, while its pages are warm.
    free: BTreeMap<Key, Vec<FreeSlot<B>>>,
    live_labels: HashMap<&'static str, LabelUse>,
    stats: PoolStats,
    tick: u64,
    /// Peak of leased and pending bytes in this window of acquires and in the one before.
    window_peaks: [u64; 2],
    window_ends_at: u64,
    /// Bytes of buffers that are being created outside the lock.
    reserved_bytes: u64,
}

impl<B> State<B> {
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            free: BTreeMap::new(),
            live_labels: HashMap::new(),
            stats: PoolStats::default(),
            tick: 0,
            window_peaks: [0; 2],
            window_ends_at: WINDOW_ACQUIRES,
            reserved_bytes: 0,
        }
    }

    pub fn stats(&self) -> PoolStats {
        self.stats
    }

    pub fn report(&self) -> PoolReport {
        let mut largest: Vec<LabelUse> = self.live_labels.values().copied().collect();
        largest.sort_by(|a, b| {
            b.requested_bytes
                .cmp(&a.requested_bytes)
                .then(a.label.cmp(b.label))
        });
        largest.truncate(8);
        PoolReport {
            stats: self.stats,
            largest,
        }
    }

    pub fn reset_peaks(&mut self) {
        self.stats.peak_leased_requested_bytes = self.stats.leased_requested_bytes;
        self.stats.peak_held_bytes = self.stats.held_bytes();
    }

    pub fn keeps_released(&self) -> bool {
        self.policy.keeps()
    }

    /// A cached buffer for a request: of its own class, else the smallest larger one that the policy lets it borrow.
    pub fn take(&mut self, key: Key, requested_bytes: u64, label: &'static str) -> Option<Slot<B>> {
        let last = Key {
            class_bytes: self.policy.borrow_limit_bytes(key.class_bytes),
            ..key
        };
        let found = *self
            .free
            .range(key..=last)
            .find(|(_, list)| !list.is_empty())?
            .0;
        let slot = self.free.get_mut(&found)?.pop()?.slot;
        self.stats.free -= 1;
        self.stats.free_bytes -= found.class_bytes;
        if found == key {
            self.stats.hits_exact += 1;
        } else {
            self.stats.hits_borrowed += 1;
        }
        self.lease(found.class_bytes, requested_bytes, label);
        Some(slot)
    }

    /// Sets bytes aside for a buffer that is about to be created, so that threads creating at the same time cannot pass a
    /// budget together.
    pub fn reserve(&mut self, key: Key) {
        self.reserved_bytes += key.class_bytes;
    }

    /// Takes [`reserve`](Self::reserve) back: the device did not make the buffer.
    pub fn unreserve(&mut self, key: Key) {
        self.reserved_bytes -= key.class_bytes;
    }

    /// The reserved buffer exists and is leased.
    pub fn created(&mut self, key: Key, requested_bytes: u64, label: &'static str) {
        self.reserved_bytes -= key.class_bytes;
        self.stats.creates += 1;
        self.stats.misses += 1;
        self.lease(key.class_bytes, requested_bytes, label);
    }

    /// Bytes that exist or are about to.
    pub fn committed_bytes(&self) -> u64 {
        self.stats.held_bytes() + self.reserved_bytes
    }

    fn lease(&mut self, class_bytes: u64, requested_bytes: u64, label: &'static str) {
        self.stats.acquires += 1;
        self.stats.leased += 1;
        self.stats.leased_bytes += class_bytes;
        self.add_live(requested_bytes, label);
        self.tick += 1;
        if self.tick >= self.window_ends_at {
            self.window_ends_at = self.tick + WINDOW_ACQUIRES;
            self.window_peaks = [0, self.window_peaks[0]];
        }
        let live = self.stats.leased_bytes + self.stats.pending_bytes;
        self.window_peaks[0] = self.window_peaks[0].max(live);
        self.stats.peak_held_bytes = self.stats.peak_held_bytes.max(self.stats.held_bytes());
    }

    fn add_live(&mut self, requested_bytes: u64, label: &'static str) {
        self.stats.leased_requested_bytes += requested_bytes;
        self.stats.peak_leased_requested_bytes = self
            .stats
            .peak_leased_requested_bytes
            .max(self.stats.leased_requested_bytes);
        let entry = self.live_labels.entry(label).or_insert(LabelUse {
            label,
            leases: 0,
            requested_bytes: 0,
        });
        entry.leases += 1;
        entry.requested_bytes += requested_bytes;
    }

    fn remove_live(&mut self, requested_bytes: u64, label: &'static str) {
        self.stats.leased_requested_bytes -= requested_bytes;
        if let Some(entry) = self.live_labels.get_mut(label) {
            entry.leases -= 1;
            entry.requested_bytes -= requested_bytes;
            if entry.leases == 0 {
                self.live_labels.remove(label);
            }
        }
    }

    /// One lease ends and another begins on the same buffer, inside one recording.
    pub fn relabel(&mut self, old: (u64, &'static str), requested_bytes: u64, label: &'static str) {
        self.stats.releases += 1;
        self.stats.acquires += 1;
        self.stats.hits_within_recording += 1;
        self.remove_live(old.0, old.1);
        self.add_live(requested_bytes, label);
    }

    fn end_lease(&mut self, class_bytes: u64, requested_bytes: u64, label: &'static str) {
        self.stats.releases += 1;
        self.stats.leased -= 1;
        self.stats.leased_bytes -= class_bytes;
        self.remove_live(requested_bytes, label);
        self.tick += 1;
    }

    /// A lease ends; the buffer is cached, or comes back to be dropped outside the lock.
    #[must_use]
    pub fn release(
        &mut self,
        slot: Slot<B>,
        requested_bytes: u64,
        label: &'static str,
    ) -> Option<Slot<B>> {
        self.end_lease(slot.key.class_bytes, requested_bytes, label);
        self.cache(slot)
    }

    fn cache(&mut self, slot: Slot<B>) -> Option<Slot<B>> {
        if !self.policy.keeps() {
            self.stats.destroys += 1;
            return Some(slot);
        }
        self.stats.free += 1;
        self.stats.free_bytes += slot.key.class_bytes;
        self.free.entry(slot.key).or_default().push(FreeSlot {
            slot,
            released_at: self.tick,
        });
        None
    }

    /// A lease ends while the device still has to hand the buffer back to the host.
    pub fn suspend(&mut self, key: Key, requested_bytes: u64, label: &'static str) {
        self.end_lease(key.class_bytes, requested_bytes, label);
        self.stats.pending += 1;
        self.stats.pending_bytes += key.class_bytes;
    }

    /// A pending buffer is ready; as [`release`](Self::release).
    #[must_use]
    pub fn resume(&mut self, slot: Slot<B>) -> Option<Slot<B>> {
        self.stats.pending -= 1;
        self.stats.pending_bytes -= slot.key.class_bytes;
        self.cache(slot)
    }

    /// A pending buffer will never be ready (its encoder was dropped, its device lost).
    pub fn abandon(&mut self, key: Key) {
        self.stats.pending -= 1;
        self.stats.pending_bytes -= key.class_bytes;
        self.stats.destroys += 1;
    }

    /// Cached buffers to give up before `class_bytes` more are created, so that what is held stays near what is live.
    #[must_use]
    pub fn evict_for_retention(&mut self, class_bytes: u64) -> Vec<Slot<B>> {
        let live =
            self.stats.leased_bytes + self.stats.pending_bytes + self.reserved_bytes + class_bytes;
        let peak = live.max(self.window_peaks[0]).max(self.window_peaks[1]);
        let limit = self.policy.held_limit_bytes(peak);
        self.evict_to(limit.saturating_sub(class_bytes), Eviction::Retention)
    }

    /// Gives up cached buffers, the longest unused first, until at most `held_bytes` are held or none is left.
    #[must_use]
    pub fn evict_to(&mut self, held_bytes: u64, cause: Eviction) -> Vec<Slot<B>> {
        let mut evicted = Vec::new();
        while self.committed_bytes() > held_bytes {
            let oldest = self
                .free
                .iter()
                .filter_map(|(key, list)| list.first().map(|first| (first.released_at, *key)))
                .min();
            let Some((_, key)) = oldest else { break };
            let Some(list) = self.free.get_mut(&key) else {
                break;
            };
            evicted.push(list.remove(0).slot);
            if list.is_empty() {
                self.free.remove(&key);
            }
            self.stats.free -= 1;
            self.stats.free_bytes -= key.class_bytes;
            self.stats.destroys += 1;
            match cause {
                Eviction::Retention => self.stats.evictions_retention += 1,
                Eviction::Budget => self.stats.evictions_budget += 1,
                Eviction::OutOfMemory => self.stats.evictions_out_of_memory += 1,
                Eviction::Trim => self.stats.evictions_trim += 1,
            }
        }
        evicted
    }

    pub fn recovered(&mut self) {
        self.stats.out_of_memory_recoveries += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(class_bytes: u64) -> Key {
        Key {
            usage: 1,
            class_bytes,
        }
    }

    #[test]
    fn own_class_first_then_the_smallest_that_may_be_borrowed() {
        let mut state = State::new(Policy::default());
        for class in [1024, 2048, 2304, 4096] {
            state.reserve(key(class));
            state.created(key(class), class, "a");
            assert!(
                state
                    .release(
                        Slot {
                            buffer: class,
                            key: key(class)
                        },
                        class,
                        "a"
                    )
                    .is_none()
            );
        }
        assert_eq!(
            state.take(key(1024), 1000, "b").map(|s| s.buffer),
            Some(1024)
        );
        assert_eq!(
            state.take(key(1024), 1000, "b").map(|s| s.buffer),
            Some(2048)
        );
        assert_eq!(
            state.take(key(1024), 1000, "b").map(|s| s.buffer),
            Some(2304)
        );
        assert!(
            state.take(key(1024), 1000, "b").is_none(),
            "4096 is beyond 2.25 x 1024"
        );
        let stats = state.stats();
        assert_eq!((stats.hits_exact, stats.hits_borrowed), (1, 2));
        assert!(stats.identities_hold());
    }

    #[test]
    fn usages_never_mix() {
        let mut state = State::new(Policy::default());
        state.reserve(key(1024));
        state.created(key(1024), 1024, "a");
        let slot = Slot {
            buffer: (),
            key: key(1024),
        };
        assert!(state.release(slot, 1024, "a").is_none());
        let other = Key {
            usage: 2,
            class_bytes: 1024,
        };
        assert!(state.take(other, 1024, "b").is_none());
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        /// Any order of operations: identities hold, a buffer is never in two places, the retention bound holds after
        /// every miss.
        #[test]
        fn identities_and_bounds_hold(
            operations in prop::collection::vec((0u8..6, 0usize..64, 1u64..200_000), 1..400),
            keep in any::<bool>(),
        ) {
            let policy = if keep {
                Policy::Balanced { slack: 0.25, floor_bytes: 1 << 16, max_borrow: 2.25 }
            } else {
                Policy::NoPooling
            };
            let mut state = State::new(policy);
            let mut leased: Vec<(Slot<u64>, u64)> = Vec::new();
            let mut pending: Vec<Slot<u64>> = Vec::new();
            let mut next = 0;
            for (operation, pick, bytes) in operations {
                let class = key(super::super::size_class::class_bytes(bytes, 1 << 30));
                match operation {
                    0..=2 => {
                        let slot = match state.take(class, bytes, "x") {
                            Some(slot) => slot,
                            None => {
                                drop(state.evict_for_retention(class.class_bytes));
                                state.reserve(class);
                                state.created(class, bytes, "x");
                                let stats = state.stats();
                                let peak = state.window_peaks[0].max(state.window_peaks[1]);
                                prop_assert!(stats.free == 0 || stats.held_bytes() <= policy.held_limit_bytes(peak));
                                next += 1;
                                Slot { buffer: next, key: class }
                            }
                        };
                        prop_assert!(slot.key.class_bytes >= bytes);
                        prop_assert!(leased.iter().all(|(other, _)| other.buffer != slot.buffer));
                        prop_assert!(pending.iter().all(|other| other.buffer != slot.buffer));
                        leased.push((slot, bytes));
                    }
                    3 if !leased.is_empty() => {
                        let (slot, bytes) = leased.swap_remove(pick % leased.len());
                        drop(state.release(slot, bytes, "x"));
                    }
                    4 if !leased.is_empty() => {
                        let (slot, bytes) = leased.swap_remove(pick % leased.len());
                        state.suspend(slot.key, bytes, "x");
                        pending.push(slot);
                    }
                    5 if !pending.is_empty() => {
                        let slot = pending.swap_remove(pick % pending.len());
                        if bytes % 2 == 0 { drop(state.resume(slot)) } else { state.abandon(slot.key) }
                    }
                    _ => drop(state.evict_to(bytes, Eviction::Trim)),
                }
                let stats = state.stats();
                prop_assert!(stats.identities_hold(), "{stats}");
                prop_assert_eq!(stats.leased, leased.len() as u64);
                prop_assert_eq!(stats.pending, pending.len() as u64);
                prop_assert_eq!(stats.leased_requested_bytes, leased.iter().map(|l| l.1).sum::<u64>());
                prop_assert_eq!(stats.free, state.free.values().map(|list| list.len() as u64).sum::<u64>());
            }
        }
    }
}
