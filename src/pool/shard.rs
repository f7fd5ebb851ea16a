//! A shard: one part of a pool's lists. Plain data, without lock or GPU.
//!
//! Every buffer belongs to one shard, which tracks its state:
//!
//! ```text
//!            insert               take                    release
//!   (made) --------> leased <------------------ free <---------------- leased
//!                       |                        ^  |
//!                       | suspend        resume  |  | remove
//!                       +-----> pending ---------+  +------> (given up)
//! ```
//!
//! Cached buffers wait in one stack per usage set and size class. The last one to come back is lent first, while its pages
//! are warm; the bottom of a stack has been unused for longest. When a buffer is created, its stack reserves room for it, so
//! that nothing is allocated when it comes back. (Lists linked through the entries would need no room, but touch a
//! neighbour's cache line at each step: with 4000 live buffers a hit took 146 ns.)
//!
//! **Gauges and ceilings.** Peaks and caps concern the sum over all shards. A common counter would make every thread wait
//! for every other. Instead, each gauge of a shard has a ceiling, and the ceilings of all shards add up to at most the
//! gauge's *line*: the next value at which something must happen, such as a new peak or a limit. Below its ceilings a shard
//! works alone. An operation that would exceed a ceiling is refused and done again under the locks of all shards. There the
//! sum is exact, and the remaining room is divided anew among the shards that use it.

use std::sync::Arc;

use super::lease::PooledBuffer;
use super::lists::Lists;
use super::size_class;
use crate::label::Label;
use crate::pool_figures::ClassUse;

/// Most cached buffers that a lookup compares where sizes differ within a class, so that its time is bounded.
const MAX_COMPARED: usize = 32;

/// A request for a lease, with valid sizes.
#[derive(Clone, Debug)]
pub(super) struct Request<'a> {
    pub label: &'a Label,
    /// Bytes asked for, a multiple of 4.
    pub requested_bytes: u64,
    /// Bits of the usage set.
    pub usage: u32,
    /// Bytes of the buffer that would be created.
    pub buffer_bytes: u64,
    /// Bytes of the largest buffer that may serve.
    pub borrow_bytes: u64,
}

/// The gauges of a shard; indices of [`Gauges`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gauge {
    Leases,
    RequestedBytes,
    LeasedBytes,
    Pending,
    PendingBytes,
    Free,
    FreeBytes,
    /// Leased and pending bytes.
    LiveBytes,
}

pub(super) const NUM_GAUGES: usize = 8;

pub(super) type Gauges = [u64; NUM_GAUGES];

/// Counts since the pool was created.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub acquires: u64,
    pub releases: u64,
    pub hits_exact: u64,
    pub hits_borrowed: u64,
    pub hits_shared: u64,
    pub hits_within_recording: u64,
    pub misses: u64,
    pub creates: u64,
    pub destroys: u64,
    pub requested_bytes: u64,
    pub leased_bytes: u64,
    pub created_bytes: u64,
    pub destroyed_bytes: u64,
    pub suspends: u64,
    pub suspended_bytes: u64,
    pub frees: u64,
    pub freed_bytes: u64,
}

/// State of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Vacant,
    Leased,
    Pending,
    Free,
}

/// A buffer, in a cache line of its own.
#[repr(align(64))]
pub(super) struct Entry<B> {
    pub buffer: Option<Arc<PooledBuffer<B>>>,
    pub place: Place,
    pub requested_bytes: u64,
    pub label: Label,
    /// The shard's clock when the buffer was leased or came back.
    pub stamp: u64,
    /// Submissions of the pool when the buffer came back.
    pub epoch: u64,
    class: u16,
    list: u16,
    keeps: bool,
}

/// How a request was served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    /// By a cached buffer of the size that would be created.
    Exact,
    /// By a larger cached buffer.
    Borrowed,
}

/// A shard's answer to a request.
pub(super) enum Taken<B> {
    Hit(Arc<PooledBuffer<B>>, Fit),
    Miss,
    /// A ceiling would be exceeded.
    Crowded,
}

/// Whether an operation was done, or has to be repeated under all locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Done {
    Yes,
    Crowded,
}

pub(super) struct Shard<B> {
    pub entries: Vec<Entry<B>>,
    vacant: Vec<u32>,
    lists: Vec<Lists>,
    pub gauges: Gauges,
    pub ceilings: Gauges,
    pub counts: Counts,
    /// Peak of this shard's live bytes in this window.
    pub window_peak_live_bytes: u64,
    /// Value of `counts.acquires` at which the window ends, as far as this shard can tell.
    pub acquires_ceiling: u64,
    /// Value of `counts.acquires` when the ceilings were last set.
    pub acquires_when_leveled: u64,
    /// Counts leases and returns; all shards get the same clock whenever all are locked.
    pub clock: u64,
    /// Whether nothing is kept any more, because the pool is gone or its device lost.
    pub closed: bool,
    /// Whether operations are recorded in a trace.
    pub traced: bool,
}

impl<B> Shard<B> {
    pub fn new() -> Self {
        Self {
            entries: Vec::new(),
            vacant: Vec::new(),
            lists: Vec::new(),
            gauges: [0; NUM_GAUGES],
            ceilings: [0; NUM_GAUGES],
            counts: Counts::default(),
            window_peak_live_bytes: 0,
            acquires_ceiling: 0,
            acquires_when_leveled: 0,
            clock: 0,
            closed: false,
            traced: false,
        }
    }

    /// Whether the shard lent anything since its ceilings were last set.
    pub fn is_busy(&self) -> bool {
        self.counts.acquires != self.acquires_when_leveled
    }

    pub fn gauge(&self, gauge: Gauge) -> u64 {
        self.gauges[gauge as usize]
    }

    /// Whether `gauge` may grow by `by`.
    fn has_room(&self, gauge: Gauge, by: u64) -> bool {
        self.gauges[gauge as usize] + by <= self.ceilings[gauge as usize]
    }

    fn add(&mut self, gauge: Gauge, by: u64) {
        self.gauges[gauge as usize] += by;
    }

    fn subtract(&mut self, gauge: Gauge, by: u64) {
        self.gauges[gauge as usize] -= by;
    }

    /// Lends a cached buffer of the request's own class, or else of the nearest larger class that it may borrow from. With
    /// `forced` it ignores ceilings.
    pub fn take(&mut self, request: &Request, forced: bool) -> Taken<B> {
        let Some((list, class, index)) = self.find(request) else {
            return Taken::Miss;
        };
        let Some(held) = self.entries[index as usize].buffer.clone() else {
            return Taken::Miss;
        };
        let room = || {
            self.has_room(Gauge::Leases, 1)
                && self.has_room(Gauge::RequestedBytes, request.requested_bytes)
                && self.has_room(Gauge::LeasedBytes, held.bytes())
                && self.has_room(Gauge::LiveBytes, held.bytes())
                && self.counts.acquires < self.acquires_ceiling
        };
        if !forced && !room() {
            return Taken::Crowded;
        }
        self.lists[list as usize].take_out(class, index);
        self.subtract(Gauge::Free, 1);
        self.subtract(Gauge::FreeBytes, held.bytes());
        self.lease(index, list, class, request, held.bytes());
        let fit = if held.bytes() == request.buffer_bytes {
            self.counts.hits_exact += 1;
            Fit::Exact
        } else {
            self.counts.hits_borrowed += 1;
            Fit::Borrowed
        };
        held.lend();
        Taken::Hit(held, fit)
    }

    fn find(&self, request: &Request) -> Option<(u16, usize, u32)> {
        let list = self.list_of(request.usage)?;
        let lists = &self.lists[list as usize];
        let own = size_class::class_index(request.buffer_bytes);
        // Sizes within the request's own class may differ; every buffer of the classes above, up to `last`, fits.
        let newest_first = lists.classes[own].free.iter().rev();
        for &index in newest_first.take(MAX_COMPARED) {
            let entry = &self.entries[index as usize];
            let bytes = entry.buffer.as_ref().map_or(0, |held| held.bytes());
            if (request.requested_bytes..=request.borrow_bytes).contains(&bytes) {
                return Some((list, own, index));
            }
        }
        let last = size_class::class_index_below(request.borrow_bytes);
        let class = lists.first_occupied(own + 1, last)?;
        let newest = *lists.classes[class].free.last()?;
        Some((list, class, newest))
    }

    fn list_of(&self, usage: u32) -> Option<u16> {
        let found = self.lists.iter().position(|lists| lists.usage == usage);
        found.map(|list| list as u16)
    }

    fn list_or_new(&mut self, usage: u32) -> u16 {
        if let Some(list) = self.list_of(usage) {
            return list;
        }
        self.lists.push(Lists::new(usage));
        (self.lists.len() - 1) as u16
    }

    fn lease(&mut self, index: u32, list: u16, class: usize, request: &Request, bytes: u64) {
        self.clock += 1;
        let entry = &mut self.entries[index as usize];
        entry.place = Place::Leased;
        entry.requested_bytes = request.requested_bytes;
        entry.label = request.label.clone();
        entry.stamp = self.clock;
        self.counts.acquires += 1;
        self.counts.requested_bytes += request.requested_bytes;
        self.counts.leased_bytes += bytes;
        self.lists[list as usize].classes[class].acquires += 1;
        self.add(Gauge::Leases, 1);
        self.add(Gauge::RequestedBytes, request.requested_bytes);
        self.add(Gauge::LeasedBytes, bytes);
        self.add(Gauge::LiveBytes, bytes);
        let live_bytes = self.gauge(Gauge::LiveBytes);
        self.window_peak_live_bytes = self.window_peak_live_bytes.max(live_bytes);
    }

    /// Adds a new buffer, leased. Only under all locks, because it ignores ceilings.
    pub fn insert(&mut self, held: Arc<PooledBuffer<B>>, request: &Request, keeps: bool) -> u32 {
        let bytes = held.bytes();
        let (index, list, class) = self.place(held, keeps);
        self.counts.creates += 1;
        self.counts.created_bytes += bytes;
        self.counts.misses += 1;
        self.lists[list as usize].classes[class].misses += 1;
        self.lease(index, list, class, request, bytes);
        index
    }

    fn place(&mut self, held: Arc<PooledBuffer<B>>, keeps: bool) -> (u32, u16, usize) {
        let list = self.list_or_new(held.usage());
        let class = size_class::class_index(held.bytes());
        let in_class = &mut self.lists[list as usize].classes[class];
        in_class.members += 1;
        in_class
            .free
            .reserve(in_class.members - in_class.free.len());
        let entry = Entry {
            buffer: Some(held),
            place: Place::Vacant,
            requested_bytes: 0,
            label: Label::default(),
            stamp: self.clock,
            epoch: 0,
            class: class as u16,
            list,
            keeps,
        };
        let index = match self.vacant.pop() {
            Some(index) => {
                self.entries[index as usize] = entry;
                index
            }
            None => {
                self.entries.push(entry);
                (self.entries.len() - 1) as u32
            }
        };
        (index, list, class)
    }

    /// Ends a lease. Its buffer is cached, or leaves the pool if it is not worth keeping. With `forced` it ignores ceilings.
    pub fn release(&mut self, index: u32, bytes: u64, epoch: u64, forced: bool) -> Done {
        let kept = self.entries[index as usize].keeps && !self.closed;
        if kept && !forced && !self.has_room_for_free(bytes) {
            return Done::Crowded;
        }
        self.end_lease(index, bytes);
        self.settle(index, bytes, epoch, kept);
        Done::Yes
    }

    fn has_room_for_free(&self, bytes: u64) -> bool {
        self.has_room(Gauge::Free, 1) && self.has_room(Gauge::FreeBytes, bytes)
    }

    fn end_lease(&mut self, index: u32, bytes: u64) {
        self.clock += 1;
        let requested_bytes = self.entries[index as usize].requested_bytes;
        self.counts.releases += 1;
        self.subtract(Gauge::Leases, 1);
        self.subtract(Gauge::RequestedBytes, requested_bytes);
        self.subtract(Gauge::LeasedBytes, bytes);
        self.subtract(Gauge::LiveBytes, bytes);
    }

    /// Caches a buffer that nobody uses any more, or lets it leave the pool.
    fn settle(&mut self, index: u32, bytes: u64, epoch: u64, kept: bool) {
        self.entries[index as usize].stamp = self.clock;
        self.entries[index as usize].epoch = epoch;
        if kept {
            self.counts.frees += 1;
            self.counts.freed_bytes += bytes;
            self.add(Gauge::Free, 1);
            self.add(Gauge::FreeBytes, bytes);
            self.link(index);
        } else {
            self.vacate(index);
            self.destroyed(bytes);
        }
    }

    /// Counts a buffer that leaves the pool.
    pub fn destroyed(&mut self, bytes: u64) {
        self.counts.destroys += 1;
        self.counts.destroyed_bytes += bytes;
    }

    /// Ends a lease whose buffer the device has not yet handed back to the host.
    pub fn suspend(&mut self, index: u32, bytes: u64, forced: bool) -> Done {
        let room = self.has_room(Gauge::Pending, 1) && self.has_room(Gauge::PendingBytes, bytes);
        if !forced && !room {
            return Done::Crowded;
        }
        self.end_lease(index, bytes);
        self.entries[index as usize].place = Place::Pending;
        self.counts.suspends += 1;
        self.counts.suspended_bytes += bytes;
        self.add(Gauge::Pending, 1);
        self.add(Gauge::PendingBytes, bytes);
        self.add(Gauge::LiveBytes, bytes);
        Done::Yes
    }

    /// Ends a buffer's pending state: it is usable again, or, without `usable`, never will be.
    pub fn resume(
        &mut self,
        index: u32,
        bytes: u64,
        epoch: u64,
        usable: bool,
        forced: bool,
    ) -> Done {
        let kept = usable && self.entries[index as usize].keeps && !self.closed;
        if kept && !forced && !self.has_room_for_free(bytes) {
            return Done::Crowded;
        }
        self.clock += 1;
        self.subtract(Gauge::Pending, 1);
        self.subtract(Gauge::PendingBytes, bytes);
        self.subtract(Gauge::LiveBytes, bytes);
        self.settle(index, bytes, epoch, kept);
        Done::Yes
    }

    /// Ends one lease and begins another on the same buffer.
    pub fn relabel(&mut self, index: u32, bytes: u64, request: &Request, forced: bool) -> Done {
        let before = self.entries[index as usize].requested_bytes;
        let grows_by = request.requested_bytes.saturating_sub(before);
        let room = self.has_room(Gauge::RequestedBytes, grows_by)
            && self.counts.acquires < self.acquires_ceiling;
        if !forced && !room {
            return Done::Crowded;
        }
        self.end_lease(index, bytes);
        let entry = &self.entries[index as usize];
        let (list, class) = (entry.list, usize::from(entry.class));
        self.counts.hits_within_recording += 1;
        self.lease(index, list, class, request, bytes);
        Done::Yes
    }

    /// The cached buffer that has been unused for longest: its entry, and the clock when it came back.
    pub fn oldest(&self) -> Option<(u64, u32)> {
        let of_lists = self.lists.iter().flat_map(|lists| {
            let oldest = lists
                .occupied()
                .filter_map(|class| lists.classes[class].free.first());
            oldest.map(|&index| (self.entries[index as usize].stamp, index))
        });
        of_lists.min()
    }

    /// Takes out a cached buffer. Returns it with the number of submissions when it came back.
    pub fn remove(&mut self, index: u32) -> Option<(Arc<PooledBuffer<B>>, u64)> {
        let entry = &self.entries[index as usize];
        let (list, class, epoch) = (entry.list, usize::from(entry.class), entry.epoch);
        self.lists[list as usize].take_out(class, index);
        let held = self.vacate(index)?;
        self.subtract(Gauge::Free, 1);
        self.subtract(Gauge::FreeBytes, held.bytes());
        Some((held, epoch))
    }

    /// Adds a cached buffer of another shard, as if it had always been here.
    pub fn adopt(&mut self, held: Arc<PooledBuffer<B>>, epoch: u64) -> u32 {
        let bytes = held.bytes();
        let (index, _, _) = self.place(held, true);
        self.entries[index as usize].epoch = epoch;
        self.add(Gauge::Free, 1);
        self.add(Gauge::FreeBytes, bytes);
        self.link(index);
        index
    }

    /// Looks for a cached buffer without taking it.
    pub fn peek(&self, request: &Request) -> Option<(u32, Fit)> {
        let (_, _, index) = self.find(request)?;
        let held = self.entries[index as usize].buffer.as_ref()?;
        let fit = if held.bytes() == request.buffer_bytes {
            Fit::Exact
        } else {
            Fit::Borrowed
        };
        Some((index, fit))
    }

    fn vacate(&mut self, index: u32) -> Option<Arc<PooledBuffer<B>>> {
        let entry = &mut self.entries[index as usize];
        entry.place = Place::Vacant;
        self.lists[entry.list as usize].classes[usize::from(entry.class)].members -= 1;
        self.vacant.push(index);
        entry.buffer.take()
    }

    fn link(&mut self, index: u32) {
        let entry = &mut self.entries[index as usize];
        let class = usize::from(entry.class);
        let lists = &mut self.lists[entry.list as usize];
        entry.place = Place::Free;
        lists.push(class, index);
    }

    /// Adds this shard's part to a table of classes.
    pub fn add_class_uses(&self, table: &mut std::collections::BTreeMap<(u32, u64), ClassUse>) {
        for lists in &self.lists {
            let classes = lists.classes.iter().enumerate();
            for (index, class) in classes.filter(|(_, class)| class.acquires > 0) {
                let entry = class_use(table, lists.usage, index);
                entry.acquires += class.acquires;
                entry.misses += class.misses;
            }
        }
        for entry in &self.entries {
            let Some(held) = &entry.buffer else { continue };
            let line = class_use(table, held.usage(), entry.class.into());
            match entry.place {
                Place::Leased => {
                    line.leased += 1;
                    line.wasted_bytes += held.bytes() - entry.requested_bytes;
                }
                Place::Pending => line.pending += 1,
                Place::Free => line.free += 1,
                Place::Vacant => {}
            }
        }
    }
}

fn class_use(
    table: &mut std::collections::BTreeMap<(u32, u64), ClassUse>,
    usage: u32,
    class: usize,
) -> &mut ClassUse {
    let class_bytes = size_class::bytes_of_class(class).unwrap_or(u64::MAX);
    table.entry((usage, class_bytes)).or_insert(ClassUse {
        usage,
        class_bytes,
        ..ClassUse::default()
    })
}
