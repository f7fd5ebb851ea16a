//! The shards of a pool, their locks, and what happens when a shard cannot serve a request alone.
//!
//! A hit and a return take the lock of one shard. Everything else takes all locks: first the ledger's, then those of the
//! shards in use, in order. No lock is held while policies, sources and destructors of buffers run, so these may be slow,
//! panic, or call the pool.

use std::sync::Arc;

use super::event::{Event, EvictionCause, Outcome, TraceLog};
use super::lease::PooledBuffer;
use super::ledger::{Budget, Ledger};
use super::locked_pool::{Evicted, LockedPool};
use super::policy::{Policy, Pressure};
use super::shard::{Done, Request, Shard};
use super::source::BufferSource;
use super::sync::{AtomicU32, AtomicU64, Mutex, Ordering, lock};
use crate::label::Label;
use crate::pool_figures::PoolStats;
use crate::pool_figures::{LeaseInfo, PoolReport};

/// Number of shards. Two threads share a shard only when there are more threads than this.
#[cfg(not(loom))]
pub(super) const NUM_SHARDS: usize = 8;
#[cfg(loom)]
pub(super) const NUM_SHARDS: usize = 2;

/// Calls of [`Core::tick`] after which a window ends.
const WINDOW_TICKS: u32 = 64;

/// Keeps values that different threads write on separate cache lines.
#[repr(align(128))]
pub(super) struct Padded<T>(pub T);

pub(super) struct Core<B> {
    id: u64,
    pub(super) source: Box<dyn BufferSource<B>>,
    pub(super) policy: Arc<dyn Policy>,
    max_buffer_bytes: u64,
    pub(super) ledger: Padded<Mutex<Ledger>>,
    /// One bit per shard that was ever used.
    active: AtomicU32,
    ticks: AtomicU32,
    serials: AtomicU64,
    submissions: AtomicU64,
    pub(super) completed: AtomicU64,
    trace: Mutex<Option<TraceLog>>,
    pub(super) shards: [Padded<Mutex<Shard<B>>>; NUM_SHARDS],
}

impl<B> Core<B> {
    pub fn new(
        id: u64,
        source: Box<dyn BufferSource<B>>,
        policy: Arc<dyn Policy>,
        budget: Budget,
    ) -> Arc<Self> {
        let max_buffer_bytes = source.max_buffer_bytes() & !3;
        Arc::new(Self {
            id,
            source,
            policy,
            max_buffer_bytes,
            ledger: Padded(Mutex::new(Ledger::new(budget))),
            active: AtomicU32::new(0),
            ticks: AtomicU32::new(0),
            serials: AtomicU64::new(0),
            submissions: AtomicU64::new(0),
            completed: AtomicU64::new(0),
            trace: Mutex::new(None),
            shards: std::array::from_fn(|_| Padded(Mutex::new(Shard::new()))),
        })
    }

    pub fn id(&self) -> u64 {
        self.id
    }

    /// A serial number for a new buffer.
    pub fn next_serial(&self) -> u64 {
        self.serials.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub fn source(&self) -> &dyn BufferSource<B> {
        &*self.source
    }

    pub fn max_buffer_bytes(&self) -> u64 {
        self.max_buffer_bytes
    }

    /// A valid request for `requested_bytes` (a multiple of 4, at most the largest buffer), whatever the policy answers.
    pub fn request<'a>(&self, label: &'a Label, requested_bytes: u64, usage: u32) -> Request<'a> {
        let largest = self.max_buffer_bytes;
        let rounded = |bytes: u64| bytes.checked_next_multiple_of(4).unwrap_or(largest);
        let buffer_bytes =
            rounded(self.policy.buffer_bytes(requested_bytes)).clamp(requested_bytes, largest);
        Request {
            label,
            requested_bytes,
            usage,
            buffer_bytes,
            borrow_bytes: self.policy.borrow_bytes(buffer_bytes).max(buffer_bytes),
        }
    }

    /// The last handle of a lease is gone.
    pub fn release(&self, held: &PooledBuffer<B>) {
        let buffer = held.serial();
        _ = self.give_back(
            held,
            |kept| Event::Release { buffer, kept },
            |shard, entry, epoch, forced| shard.release(entry, held.bytes(), epoch, forced),
        );
    }

    /// A lease ended, but the device has not yet handed the buffer back to the host.
    pub fn suspend(&self, held: &PooledBuffer<B>) {
        let buffer = held.serial();
        _ = self.give_back(
            held,
            |_| Event::Suspend { buffer },
            |shard, entry, _, forced| shard.suspend(entry, held.bytes(), forced),
        );
    }

    /// The device handed a pending buffer back, or it will never be usable again.
    pub fn resume(&self, held: &PooledBuffer<B>, usable: bool) {
        let buffer = held.serial();
        _ = self.give_back(
            held,
            |kept| Event::Resume {
                buffer,
                usable,
                kept,
            },
            |shard, entry, epoch, forced| shard.resume(entry, held.bytes(), epoch, usable, forced),
        );
    }

    /// One lease ends and another begins on the same buffer.
    pub fn relabel(&self, held: &PooledBuffer<B>, request: &Request) {
        let done = self.give_back(
            held,
            |_| acquired(held, request, Outcome::WithinRecording),
            |shard, entry, _, forced| shard.relabel(entry, held.bytes(), request, forced),
        );
        if done == Done::Crowded {
            // The lease may have ended a window. (So may a return, but no policy is asked while a lease is dropped: it might panic.)
            self.unlock_and_follow_up(self.lock_all(None));
        }
    }

    /// Does `operation` on the entry of `held`: under the lock of its shard or, where a ceiling is reached, under all locks.
    /// `event` makes the trace's event, given whether the pool kept the buffer. Returns how far the shard came alone.
    fn give_back(
        &self,
        held: &PooledBuffer<B>,
        event: impl Fn(bool) -> Event,
        operation: impl Fn(&mut Shard<B>, u32, u64, bool) -> Done,
    ) -> Done {
        let (shard_index, entry) = held.home();
        let epoch = self.submissions.load(Ordering::Relaxed);
        let once = |shard: &mut Shard<B>, forced: bool| {
            let destroys = shard.counts.destroys;
            let done = operation(shard, entry, epoch, forced);
            let kept = shard.counts.destroys == destroys;
            if done == Done::Yes && shard.traced {
                self.log(event(kept));
            }
            (done, kept)
        };
        let mut shard = lock(&self.shards[shard_index].0);
        let (done, mut kept) = once(&mut shard, false);
        drop(shard);
        if done == Done::Crowded {
            kept = self.give_back_slowly(shard_index, &|shard| once(shard, true).1);
        }
        if !kept {
            self.destroyed(epoch, held.bytes());
        }
        done
    }

    #[cold]
    fn give_back_slowly(&self, shard_index: usize, once: &dyn Fn(&mut Shard<B>) -> bool) -> bool {
        let mut evicted = Evicted::new();
        let mut all = self.lock_all(Some(shard_index));
        // Under all locks nothing is refused.
        let kept = once(all.shard(shard_index));
        all.raise_peaks();
        all.apply_caps(&mut evicted);
        all.level();
        drop(all);
        kept
    }

    /// Counts the bytes of a destroyed buffer as draining until the submissions before it are done.
    fn destroyed(&self, epoch: u64, bytes: u64) {
        let completed = self.completed.load(Ordering::Relaxed);
        if epoch > completed {
            lock(&self.ledger.0).drain(epoch, completed, bytes);
        }
    }

    /// Counts a submission and returns its number, for [`completed`](Self::completed).
    pub fn submitted(&self) -> u64 {
        let epoch = self.submissions.fetch_add(1, Ordering::Relaxed) + 1;
        self.tick();
        epoch
    }

    /// All submissions up to number `epoch` are done.
    pub fn completed(&self, epoch: u64) {
        self.completed.fetch_max(epoch, Ordering::Relaxed);
    }

    /// Counts a submission or a frame as passed time.
    pub fn tick(&self) {
        self.log(Event::Tick);
        let ticks = self.ticks.fetch_add(1, Ordering::Relaxed);
        if ticks % WINDOW_TICKS == WINDOW_TICKS - 1 {
            let mut all = self.lock_all(None);
            all.end_window();
            self.unlock_and_follow_up(all);
        }
    }

    pub fn set_budget(&self, bytes: Option<u64>) {
        let mut evicted = Evicted::new();
        let mut all = self.lock_all(None);
        all.ledger.budget.bytes = bytes;
        all.apply_caps(&mut evicted);
        all.ledger.policy_due = true;
        self.unlock_and_follow_up(all);
    }

    pub fn set_pressure(&self, pressure: Pressure) {
        let mut all = self.lock_all(None);
        all.ledger.pressure = pressure;
        all.ledger.policy_due = true;
        self.unlock_and_follow_up(all);
    }

    /// Destroys cached buffers until at most `held_bytes` are held; returns their bytes.
    pub fn trim_to(&self, held_bytes: u64) -> u64 {
        let mut evicted = Evicted::new();
        let mut all = self.lock_all(None);
        all.evict(EvictionCause::Trim, &mut evicted, |all| {
            all.committed_bytes() > held_bytes
        });
        self.unlock_and_follow_up(all);
        evicted.bytes()
    }

    /// The pool's last handle is gone: cached buffers are destroyed, and so are leased ones when they come back.
    pub fn close(&self) {
        let mut all = self.lock_all(None);
        all.for_each_shard(|shard| shard.closed = true);
        let mut evicted = Evicted::new();
        all.evict(EvictionCause::Trim, &mut evicted, |_| true);
        all.level();
        drop(all);
        drop(evicted);
    }

    /// The device is lost: nothing can be lent any more.
    pub fn device_lost(&self, reason: String) {
        #[cfg(feature = "tracing")]
        tracing::error!(reason, "the device is lost");
        lock(&self.ledger.0).lost.get_or_insert(reason);
        // No submission is waited for any more.
        self.completed(u64::MAX);
        self.close();
    }

    pub fn stats(&self) -> PoolStats {
        self.lock_all(None).stats(0)
    }

    pub fn report(&self) -> PoolReport {
        self.lock_all(None).report()
    }

    pub fn leases(&self) -> Vec<LeaseInfo> {
        self.lock_all(None).leases()
    }

    pub fn reset_peaks(&self) {
        let mut all = self.lock_all(None);
        let (gauges, held_bytes) = (all.gauges(), all.held_bytes());
        let own = &mut all.ledger.watches[0];
        (own.peaks, own.peak_held_bytes) = (gauges, held_bytes);
        all.ledger.imports.reset_peaks();
        all.level();
    }

    pub fn open_scope(&self) -> (u64, PoolStats) {
        let mut all = self.lock_all(None);
        let (gauges, held_bytes) = (all.gauges(), all.held_bytes());
        let id = all.ledger.watch(gauges, held_bytes);
        let stats = all.stats(id);
        all.level();
        (id, stats)
    }

    pub fn scope_stats(&self, id: u64) -> PoolStats {
        self.lock_all(None).stats(id)
    }

    pub fn close_scope(&self, id: u64) {
        let mut all = self.lock_all(None);
        all.ledger.watches.retain(|watch| watch.id != id);
        all.level();
    }

    /// Begins a trace and drops an earlier one.
    pub fn start_trace(&self) {
        let mut all = self.lock_all(None);
        *lock(&self.trace) = Some(TraceLog::new(all.existing()));
        all.for_each_shard(|shard| shard.traced = true);
        all.level();
    }

    pub fn take_trace(&self) -> Option<Vec<(u64, Event)>> {
        let mut all = self.lock_all(None);
        all.for_each_shard(|shard| shard.traced = false);
        all.level();
        lock(&self.trace).take().map(TraceLog::finish)
    }

    pub(super) fn log_acquire(&self, held: &PooledBuffer<B>, request: &Request, outcome: Outcome) {
        self.log(acquired(held, request, outcome));
    }

    /// Called under the lock of the buffer's shard, so that the events of one buffer are in order.
    pub(super) fn log(&self, event: Event) {
        if let Some(trace) = &mut *lock(&self.trace) {
            trace.push(event);
        }
    }

    /// Releases the locks, then asks the policy for new limits if a window has ended.
    pub(super) fn unlock_and_follow_up(&self, mut all: LockedPool<'_, B>) {
        all.level();
        if !std::mem::take(&mut all.ledger.policy_due) {
            return;
        }
        let usage = all.usage(0);
        drop(all);
        let limits = self.policy.limits(&usage);
        let mut evicted = Evicted::new();
        let mut all = self.lock_all(None);
        all.ledger.limits = limits;
        all.apply_limits(0, usage.pressure, &mut evicted);
        all.level();
        drop(all);
        drop(evicted);
    }

    /// Takes all locks. `own` is the shard of the caller's thread or buffer, if any.
    pub(super) fn lock_all(&self, own: Option<usize>) -> LockedPool<'_, B> {
        let mut ledger = lock(&self.ledger.0);
        // Changes only here, under the ledger's lock.
        let before = self.active.load(Ordering::Relaxed);
        let active = before | own.map_or(0, |own| 1 << own);
        if active != before {
            self.active.store(active, Ordering::Relaxed);
        }
        ledger.drained(self.completed.load(Ordering::Relaxed));
        let shards = std::array::from_fn(|index| {
            (active >> index & 1 == 1).then(|| lock(&self.shards[index].0))
        });
        LockedPool::new(self, ledger, shards)
    }
}

impl<B> std::fmt::Debug for Core<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core")
            .field("id", &self.id)
            .field("source", &self.source)
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}

fn acquired<B>(held: &PooledBuffer<B>, request: &Request, outcome: Outcome) -> Event {
    Event::Acquire {
        buffer: held.serial(),
        requested_bytes: request.requested_bytes,
        buffer_bytes: held.bytes(),
        usage: request.usage,
        label: request.label.clone(),
        outcome,
    }
}
