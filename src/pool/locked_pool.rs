//! A pool with all locks taken: what one shard cannot decide alone.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::core::{Core, NUM_SHARDS};
use super::event::{Event, EvictionCause, Outcome};
use super::lease::{Lease, PooledBuffer};
use super::ledger::{Ledger, WINDOW_ACQUIRES};
use super::policy::{Limits, Pressure, Usage};
use super::shard::{Counts, Fit, Gauge, Gauges, NUM_GAUGES, Place, Request, Shard, Taken};
use super::size_class;
use super::sync::{MutexGuard, Ordering, lock};
use crate::pool_figures::PoolStats;
use crate::pool_figures::{LeaseInfo, PoolReport};
use crate::wgpu::BufferUsages;

/// All locks of a pool. Call [`level`](Self::level) before dropping it if anything changed.
pub(super) struct LockedPool<'a, B> {
    core: &'a Core<B>,
    pub ledger: MutexGuard<'a, Ledger>,
    shards: [Option<MutexGuard<'a, Shard<B>>>; NUM_SHARDS],
}

impl<'a, B> LockedPool<'a, B> {
    pub fn new(
        core: &'a Core<B>,
        ledger: MutexGuard<'a, Ledger>,
        shards: [Option<MutexGuard<'a, Shard<B>>>; NUM_SHARDS],
    ) -> Self {
        Self {
            core,
            ledger,
            shards,
        }
    }

    /// Shard `index`: the one named when the locks were taken, or one that has a buffer.
    pub fn shard(&mut self, index: usize) -> &mut Shard<B> {
        match &mut self.shards[index] {
            Some(shard) => shard,
            None => unreachable!("the shard of a lease or of the caller is always locked"),
        }
    }

    fn active(&self) -> impl Iterator<Item = &Shard<B>> {
        self.shards.iter().flatten().map(|shard| &**shard)
    }

    fn active_mut(&mut self) -> impl Iterator<Item = &mut Shard<B>> {
        self.shards.iter_mut().flatten().map(|shard| &mut **shard)
    }

    pub fn sum(&self, gauge: Gauge) -> u64 {
        self.active().map(|shard| shard.gauge(gauge)).sum()
    }

    pub fn gauges(&self) -> Gauges {
        let mut sums = [0; NUM_GAUGES];
        for shard in self.active() {
            for (sum, gauge) in sums.iter_mut().zip(shard.gauges) {
                *sum += gauge;
            }
        }
        sums
    }

    fn acquires(&self) -> u64 {
        self.active().map(|shard| shard.counts.acquires).sum()
    }

    pub fn held_bytes(&self) -> u64 {
        self.sum(Gauge::LiveBytes) + self.sum(Gauge::FreeBytes) + self.ledger.draining_bytes
    }

    /// Bytes of buffers that exist or are being created.
    pub fn committed_bytes(&self) -> u64 {
        self.held_bytes() + self.ledger.creating_bytes
    }

    fn is_over_budget(&self) -> bool {
        let budget_bytes = self.ledger.budget.bytes;
        budget_bytes.is_some_and(|bytes| self.committed_bytes() > bytes)
    }

    pub fn usage(&self, incoming_bytes: u64) -> Usage {
        let budget = self.ledger.budget;
        let live_bytes = self.sum(Gauge::LiveBytes) + self.ledger.creating_bytes + incoming_bytes;
        let held_bytes = self.committed_bytes() + incoming_bytes;
        Usage {
            live_bytes,
            recent_peak_live_bytes: self
                .ledger
                .recent_peak_live_bytes(self.sum_of_peaks())
                .max(live_bytes),
            free_bytes: self.sum(Gauge::FreeBytes),
            free_buffers: self.sum(Gauge::Free) as usize,
            budget_bytes: budget.bytes,
            pressure: self.ledger.pressure.max(budget.pressure(held_bytes)),
            thrash_level: self.ledger.thrash_level,
        }
    }

    /// Serves a request from any shard: exact sizes before larger ones, the thread's own shard before others.
    pub fn take(&mut self, own: usize, request: &Request) -> Option<Lease<B>> {
        let order = std::iter::once(own).chain((0..NUM_SHARDS).filter(|&index| index != own));
        let mut found = None;
        for index in order {
            match self.shards[index]
                .as_ref()
                .and_then(|shard| shard.peek(request))
            {
                Some((entry, Fit::Exact)) => {
                    found = Some((index, entry));
                    break;
                }
                Some((entry, Fit::Borrowed)) => found = found.or(Some((index, entry))),
                None => {}
            }
        }
        let (from, entry) = found?;
        if from != own {
            // The buffer moves to this thread's shard, so that its next request is a hit there.
            let (held, epoch) = self.shards[from].as_mut()?.remove(entry)?;
            let entry = self.shard(own).adopt(held.clone(), epoch);
            held.set_home(own, entry);
        }
        let shard = self.shard(own);
        let Taken::Hit(held, fit) = shard.take(request, true) else {
            return None;
        };
        if from != own {
            match fit {
                Fit::Exact => shard.counts.hits_exact -= 1,
                Fit::Borrowed => shard.counts.hits_borrowed -= 1,
            }
            shard.counts.hits_shared += 1;
        }
        if self.shard(own).traced {
            let outcome = if from == own {
                fit.into()
            } else {
                Outcome::Shared
            };
            self.core.log_acquire(&held, request, outcome);
        }
        Some(Lease::new(held, request))
    }

    /// Adds a new buffer, leased.
    pub fn insert(
        &mut self,
        own: usize,
        held: &Arc<PooledBuffer<B>>,
        request: &Request,
        keeps: bool,
    ) {
        let class = size_class::class_index(held.bytes());
        let entry = self.shard(own).insert(held.clone(), request, keeps);
        held.set_home(own, entry);
        self.ledger.made(held.usage(), class);
        if self.shard(own).traced {
            self.core.log_acquire(held, request, Outcome::Created);
        }
    }

    /// Evicts cached buffers, the longest unused first, while `more` returns true.
    pub fn evict(
        &mut self,
        cause: EvictionCause,
        evicted: &mut Evicted<B>,
        more: impl Fn(&Self) -> bool,
    ) {
        let completed = self.core.completed.load(Ordering::Relaxed);
        while more(self) {
            let oldest = (0..NUM_SHARDS).filter_map(|index| {
                let (stamp, entry) = self.shards[index].as_ref()?.oldest()?;
                Some((stamp, index, entry))
            });
            let Some((_, index, entry)) = oldest.min() else {
                break;
            };
            let Some(shard) = &mut self.shards[index] else {
                break;
            };
            let Some((held, epoch)) = shard.remove(entry) else {
                break;
            };
            shard.destroyed(held.bytes());
            let (usage, bytes) = (held.usage(), held.bytes());
            let class = size_class::class_index(bytes);
            self.ledger.gave_up(cause, usage, class);
            self.ledger.drain(epoch, completed, bytes);
            if shard.traced {
                self.core.log(Event::Evict {
                    buffer: held.serial(),
                    cause,
                });
            }
            evicted.buffers.push((held, cause));
        }
    }

    /// Evicts cached buffers until the policy's limits hold with `incoming_bytes` more.
    pub fn apply_limits(
        &mut self,
        incoming_bytes: u64,
        pressure: Pressure,
        evicted: &mut Evicted<B>,
    ) {
        let Limits { held_bytes, .. } = self.ledger.limits;
        let cause = match pressure {
            Pressure::Normal => EvictionCause::Retention,
            Pressure::Graceful | Pressure::Aggressive => EvictionCause::Pressure,
        };
        // Draining memory is being freed already; evicting more would not speed that up.
        self.evict(cause, evicted, |all| {
            let held = all.committed_bytes() - all.ledger.draining_bytes;
            held.saturating_add(incoming_bytes) > held_bytes
        });
        if let Some(clock) = self.ledger.idle_clock() {
            self.evict(EvictionCause::Idle, evicted, |all| {
                let oldest = all.active().filter_map(|shard| shard.oldest());
                oldest.min().is_some_and(|(stamp, _)| stamp <= clock)
            });
        }
        self.apply_caps(evicted);
    }

    pub fn apply_caps(&mut self, evicted: &mut Evicted<B>) {
        let Limits {
            free_bytes,
            free_buffers,
            ..
        } = self.ledger.limits;
        self.evict(EvictionCause::Cap, evicted, |all| {
            all.sum(Gauge::FreeBytes) > free_bytes || all.sum(Gauge::Free) > free_buffers as u64
        });
        // If the budget was lowered below what is held, buffers that come back do not stay.
        self.evict(EvictionCause::Budget, evicted, Self::is_over_budget);
    }

    /// The sum of the shards' peaks of live bytes in this window.
    fn sum_of_peaks(&self) -> u64 {
        let peaks = self.active().map(|shard| shard.window_peak_live_bytes);
        peaks.sum()
    }

    pub fn end_window(&mut self) {
        let clock = self.active().map(|shard| shard.clock).max().unwrap_or(0);
        let (acquires, live_bytes) = (self.acquires(), self.sum(Gauge::LiveBytes));
        let peak_live_bytes = self.sum_of_peaks();
        for shard in self.active_mut() {
            shard.window_peak_live_bytes = shard.gauge(Gauge::LiveBytes);
        }
        self.ledger
            .end_window(acquires, live_bytes, peak_live_bytes, clock);
    }

    pub fn raise_peaks(&mut self) {
        let (gauges, held_bytes) = (self.gauges(), self.held_bytes());
        for watch in &mut self.ledger.watches {
            for (peak, gauge) in watch.peaks.iter_mut().zip(gauges) {
                *peak = (*peak).max(gauge);
            }
            watch.peak_held_bytes = watch.peak_held_bytes.max(held_bytes);
        }
        let live_bytes = gauges[Gauge::LiveBytes as usize];
        self.ledger.window_peaks[0] = self.ledger.window_peaks[0].max(live_bytes);
    }

    /// Records peaks, ends the window if it is over, and divides the room below the lines among the shards as their
    /// ceilings.
    pub fn level(&mut self) {
        self.raise_peaks();
        let num_busy = self.active().filter(|shard| shard.is_busy()).count().max(1) as u64;
        let acquires = self.acquires();
        let left = (self.ledger.window_begin + WINDOW_ACQUIRES).saturating_sub(acquires);
        // Otherwise several threads would divide the remaining room again and again.
        if left == 0 || (num_busy > 1 && left < WINDOW_ACQUIRES / 16) {
            self.end_window();
        }
        self.ledger.over_budget = self.is_over_budget();
        self.level_ceilings(num_busy);
        let clock = self.active().map(|shard| shard.clock).max().unwrap_or(0);
        let left = self.ledger.window_begin + WINDOW_ACQUIRES - acquires;
        for shard in self.active_mut() {
            let share = if shard.is_busy() { left / num_busy } else { 0 };
            shard.acquires_ceiling = shard.counts.acquires + share;
            shard.acquires_when_leveled = shard.counts.acquires;
            shard.clock = clock;
        }
    }

    fn level_ceilings(&mut self, num_busy: u64) {
        let lines = self.ledger.lines();
        for (gauge, line) in lines.into_iter().enumerate() {
            let (mut total, mut ceilings) = (0u64, 0u64);
            for shard in self.active_mut() {
                shard.ceilings[gauge] = shard.ceilings[gauge].max(shard.gauges[gauge]);
                total += shard.gauges[gauge];
                ceilings += shard.ceilings[gauge];
            }
            if ceilings == line {
                continue;
            }
            // If the ceilings leave room, active shards get it on top of theirs. If the ceilings add up to too much, all are
            // set anew.
            let too_high = ceilings > line;
            let room = line.saturating_sub(if too_high { total } else { ceilings }) / num_busy;
            for shard in self.active_mut() {
                if too_high {
                    shard.ceilings[gauge] = shard.gauges[gauge];
                }
                if shard.is_busy() {
                    shard.ceilings[gauge] += room;
                }
            }
        }
    }

    /// Also those never used, which nobody locks together with another.
    pub fn for_each_shard(&mut self, change: impl Fn(&mut Shard<B>)) {
        for (index, shard) in self.shards.iter_mut().enumerate() {
            match shard {
                Some(shard) => change(shard),
                None => change(&mut lock(&self.core.shards[index].0)),
            }
        }
    }

    /// The existing buffers, as the events that a trace begins with.
    pub fn existing(&self) -> Vec<Event> {
        let entries = self.active().flat_map(|shard| &shard.entries);
        let buffers = entries.filter_map(|entry| {
            let held = entry.buffer.as_ref()?;
            Some(Event::exists(
                held.serial(),
                held.bytes(),
                held.usage(),
                entry.place,
            ))
        });
        buffers.collect()
    }

    pub fn stats(&mut self, watch: u64) -> PoolStats {
        self.raise_peaks();
        let mut counts = Counts::default();
        for shard in self.active() {
            counts.add(&shard.counts);
        }
        let watch = self.ledger.watches.iter().find(|own| own.id == watch);
        let watch = watch.unwrap_or(&self.ledger.watches[0]);
        super::stats::stats(&counts, &self.gauges(), watch, &self.ledger)
    }

    pub fn any_buffer(&self, is_wanted: impl Fn(&B) -> bool) -> bool {
        let entries = self.active().flat_map(|shard| &shard.entries);
        let mut buffers = entries.filter_map(|entry| entry.buffer.as_ref());
        buffers.any(|held| is_wanted(held.buffer()))
    }

    pub fn leases(&self) -> Vec<LeaseInfo> {
        let clock = self.active().map(|shard| shard.clock).max().unwrap_or(0);
        let entries = self.active().flat_map(|shard| &shard.entries);
        let out = entries.filter(|entry| matches!(entry.place, Place::Leased | Place::Pending));
        out.filter_map(|entry| {
            let held = entry.buffer.as_ref()?;
            Some(LeaseInfo {
                label: entry.label.clone(),
                requested_bytes: entry.requested_bytes,
                buffer_bytes: held.bytes(),
                usage: BufferUsages::from_bits_retain(held.usage()),
                pending: entry.place == Place::Pending,
                age: clock - entry.stamp,
            })
        })
        .collect()
    }

    pub fn report(&mut self) -> PoolReport {
        let mut classes = BTreeMap::new();
        for shard in self.active() {
            shard.add_class_uses(&mut classes);
        }
        PoolReport::new(
            self.stats(0),
            classes.into_values().collect(),
            self.leases(),
        )
    }
}

/// Evicted buffers. They are destroyed, and reported to the application, when this is dropped, after the locks.
pub(super) struct Evicted<B> {
    buffers: Vec<(Arc<PooledBuffer<B>>, EvictionCause)>,
}

impl<B> Evicted<B> {
    pub fn new() -> Self {
        Self {
            buffers: Vec::new(),
        }
    }

    pub fn bytes(&self) -> u64 {
        self.buffers.iter().map(|(held, _)| held.bytes()).sum()
    }
}

#[cfg(feature = "tracing")]
impl<B> Drop for Evicted<B> {
    fn drop(&mut self) {
        for (held, cause) in &self.buffers {
            tracing::debug!(
                buffer = held.serial(),
                bytes = held.bytes(),
                ?cause,
                "a cached buffer is given up"
            );
        }
    }
}
