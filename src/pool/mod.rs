//! The buffer pool: every byte this library uses on a device is lent by it.
//!
//! Creating a `wgpu::Buffer` is dear: its first use clears it and faults its pages in, which takes longer the larger it is
//! (`cargo bench --bench pool`: 64 MiB take 200 ms new and 0.3 ms reused on lavapipe). So buffers are kept and lent again.
//!
//! **The reuse rule.** *A buffer may be lent again as soon as every command that uses the old lease comes before every
//! command of the new one on the queue.* It holds by construction: every write, copy, clear and read is recorded (nothing
//! goes through `Queue::write_buffer`, which runs before the recorded commands of the next submission); a
//! [`Recorder`](crate::Recorder) keeps a handle of all it uses until it is submitted; a lease goes back when its last handle is
//! dropped. What is lent after that is recorded, hence submitted, later. Inside one recording, a buffer that only the
//! recording itself still holds may serve again at once, since its own commands run in order.
//!
//! * One lease is one whole buffer. wgpu forbids binding one buffer for reading and for writing in one dispatch, even at
//!   disjoint ranges, so slices of a big buffer would force every binding to be writable.
//! * Buffers are interchangeable when usages and [size class](size_class) agree. Labels belong to leases.
//! * Contents are unspecified. [Tensors](crate::Tensor) know whether they were written; with [`PoolOptions::poison`] a recording
//!   fills every buffer it takes with NaN first, so that a read of elements never written shows.
//! * Memory is bounded by what is live, never by caps per class: those are a known failure (buffers of a busy class are
//!   re-created for ever while another class idles). A [`Policy`] sets the bound; the default keeps what is held within 1.25
//!   times the recent peak of what is live. It is applied whenever a buffer has to be made and at the end of each window of
//!   1024 leases or 64 submissions; buffers that idle for many windows go as well.
//! * Running out is an ordinary error: give up what is cached, wait for the device, look again, try again, then a typed
//!   error that carries the [report](PoolReport).
//! * Buffers mapped for writing (staging) wait as *pending* between submission and the moment the device hands them back.
//! * Dropping a buffer that submitted work still uses frees nothing yet: its bytes count as *draining*, and as held, until the
//!   submissions made before it came back are done ([`Pool::submitted`]).
//!
//! **How it is built.** `shard` holds lists and counts, plain data behind one lock per thread (eight of them; threads share
//! beyond that). A hit and a return touch nothing else: no heap, no wgpu call, no shared counter. `ledger` holds what concerns all
//! shards: peaks, windows, evictions. `core` takes all locks where one shard is not enough: on a miss, and when a gauge of a
//! shard reaches its ceiling, so that peaks and caps are exact although nobody counts in common. Buffers are made and
//! destroyed, policies and sources called, without any lock.
//!
//! All of it is generic over the buffer: [`Pool<SimulatedBuffer>`](SimulatedBuffer) is the same code without a device. Tests, fuzzers,
//! replays and the model checker run that.
//!
//! Bind groups are not pooled. Making one takes 8 us, finding one in a map 0.02, and the cheapest dispatch with its wait 320 us
//! (`cargo bench --bench pool`, lavapipe), so keeping them would save a fortieth of the smallest work there is; and
//! kept ones hold on to buffers that the pool gives up. [`Lease::buffer_serial`] is a stable key for whoever wants to keep them
//! all the same.
//!
//! # Patterns
//!
//! Temporary buffers live as long as a block; the next one gets them again:
//!
//! ```
//! # use dilated_attention::pool::{Pool, PoolOptions, STORAGE_USAGE};
//! # let (device, _) = dilated_attention::wgpu::Device::noop(&Default::default());
//! let pool = Pool::new(&device, PoolOptions::default()); // one pool per device
//! for _ in 0..10 {
//!     let scope = pool.scope("layer");
//!     let scores = pool.acquire("scores", 1 << 20, STORAGE_USAGE)?;
//!     let _weights = pool.acquire("weights", scores.requested_bytes(), STORAGE_USAGE)?;
//!     assert_eq!(scope.report().requested_bytes.peak, 2 << 20);
//! }
//! assert_eq!(pool.stats().creates, 2);
//! # Ok::<(), dilated_attention::Error>(())
//! ```
//!
//! Buffers that are kept from call to call and grow: [`PersistentBuffer`]. One buffer for q, k and v of all heads:
//! [`Recorder::empty_together`](crate::Recorder::empty_together). Buffers for communication or gradient accumulation, made before
//! they are needed: [`Pool::reserve`], with a plan or a list of [`BufferRequest`]s. Without pooling, to compare:
//!
//! ```
//! # use dilated_attention::pool::{NoPooling, Pool, PoolOptions, STORAGE_USAGE};
//! # let (device, _) = dilated_attention::wgpu::Device::noop(&Default::default());
//! let pool = Pool::new(&device, PoolOptions::default().policy(NoPooling));
//! drop(pool.acquire("scores", 1 << 20, STORAGE_USAGE)?);
//! assert_eq!((pool.stats().destroys, pool.stats().held_bytes.current), (1, 0));
//! # Ok::<(), dilated_attention::Error>(())
//! ```
//!
//! With profiling, everything a pool does is recorded, to be saved, drawn, or tried with another policy:
//!
//! ```
//! # use dilated_attention::pool::{Exact, Pool, PoolOptions, STORAGE_USAGE};
//! # let (device, _) = dilated_attention::wgpu::Device::noop(&Default::default());
//! # let pool = Pool::new(&device, PoolOptions::default());
//! pool.start_trace();
//! drop(pool.acquire("scores", 1000, STORAGE_USAGE)?);
//! drop(pool.acquire("weights", 900, STORAGE_USAGE)?);
//! let trace = pool.take_trace();
//! assert_eq!(trace.to_string().parse(), Ok(trace.clone()));
//! let exact = trace.replay(PoolOptions::default().policy(Exact), 1 << 30)?;
//! assert_eq!((pool.stats().creates, exact.stats.creates), (1, 2));
//! assert!(trace.timeline_svg("two leases").starts_with("<svg"));
//! # Ok::<(), dilated_attention::Error>(())
//! ```

pub mod policy;
pub mod size_class;

mod acquire;
mod core;
mod demand;
mod device_source;
mod event;
mod lease;
mod ledger;
mod lists;
mod locked_pool;
mod options;
mod persistent;
mod scope;
mod shard;
mod simulated;
mod source;
mod stats;
mod sync;
mod threads;
mod timeline;
mod timeline_svg;
mod trace;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

pub use crate::error::PoolError;
pub use crate::pool_figures::{
    ClassUse, Counter, Evictions, LabelUse, LeaseInfo, PoolReport, PoolStats, ScopeReport,
};
pub use demand::{BufferRequest, Demand};
pub use device_source::DeviceSource;
pub use event::{Event, EvictionCause, Outcome};
pub use lease::Lease;
pub use options::PoolOptions;
pub use persistent::PersistentBuffer;
pub use policy::{Balanced, Exact, Lean, Limits, NoPooling, Policy, Pressure, Speed, Usage};
pub use scope::PoolScope;
pub use simulated::{Faults, SimulatedBuffer, SimulatedSource};
pub use source::{BufferSource, CreateError};
pub use trace::Trace;

use self::core::Core;
use crate::watch::{DeviceWatch, WhenLost, given_reason};
use acquire::Failure;
use shard::Request;
use threads::own_shard;

/// Usages of a buffer that kernels read and write and that uploads and downloads copy to and from.
pub const STORAGE_USAGE: wgpu::BufferUsages = wgpu::BufferUsages::STORAGE
    .union(wgpu::BufferUsages::COPY_SRC)
    .union(wgpu::BufferUsages::COPY_DST);

/// Usages of a buffer with parameters of kernels.
pub const PARAMS_USAGE: wgpu::BufferUsages =
    wgpu::BufferUsages::UNIFORM.union(wgpu::BufferUsages::COPY_DST);

/// Usages of a buffer that the host writes and the device copies from.
pub const STAGING_USAGE: wgpu::BufferUsages =
    wgpu::BufferUsages::MAP_WRITE.union(wgpu::BufferUsages::COPY_SRC);

/// Usages of a buffer that the device copies to and the host reads.
pub const READBACK_USAGE: wgpu::BufferUsages =
    wgpu::BufferUsages::MAP_READ.union(wgpu::BufferUsages::COPY_DST);

/// Lends buffers of one device. Clones share one pool. When the last of them is dropped, what is cached is given up at once,
/// and what is still leased as it comes back.
///
/// ```
/// use dilated_attention::pool::{Pool, PoolOptions, STORAGE_USAGE};
/// # let (device, _) = dilated_attention::wgpu::Device::noop(&Default::default());
/// let pool = Pool::new(&device, PoolOptions::default());
/// let first = pool.acquire("scores", 1000, STORAGE_USAGE)?;
/// drop(first);
/// let second = pool.acquire("weights", 1024, STORAGE_USAGE)?; // the same buffer again
/// assert_eq!((pool.stats().creates, pool.stats().hits()), (1, 1));
/// # drop(second);
/// # Ok::<(), dilated_attention::Error>(())
/// ```
pub struct Pool<B = wgpu::Buffer> {
    owner: Arc<Owner<B>>,
}

struct Owner<B> {
    core: Arc<Core<B>>,
    poison: bool,
    /// Of the device whose buffers these are, where the pool makes them itself.
    watch: Option<Arc<DeviceWatch>>,
}

impl<B> Drop for Owner<B> {
    fn drop(&mut self) {
        self.core.close();
    }
}

impl<B> Clone for Pool<B> {
    fn clone(&self) -> Self {
        Self {
            owner: self.owner.clone(),
        }
    }
}

impl<B> fmt::Debug for Pool<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.owner.core.fmt(f)
    }
}

impl Pool {
    /// A pool of buffers of `device`.
    pub fn new(device: &wgpu::Device, options: PoolOptions) -> Self {
        Self::watched(DeviceWatch::new(device.clone()), options)
    }

    /// A pool of buffers of the device that is watched.
    pub(crate) fn watched(watch: Arc<DeviceWatch>, options: PoolOptions) -> Self {
        let source = DeviceSource::watched(watch.clone());
        let pool = Self::assemble(source, options, Some(watch.clone()));
        pool.give_up_when_lost(&watch);
        pool
    }

    /// What watches the device, where the pool makes its buffers itself.
    pub(crate) fn watch(&self) -> Option<&Arc<DeviceWatch>> {
        self.owner.watch.as_ref()
    }

    /// Has the pool told when the device is lost.
    pub(crate) fn give_up_when_lost(&self, watch: &DeviceWatch) {
        let core: Weak<Core<wgpu::Buffer>> = Arc::downgrade(self.core());
        watch.tell_pool(core);
    }
}

impl WhenLost for Core<wgpu::Buffer> {
    fn device_lost(&self, reason: &str) {
        Core::device_lost(self, reason.to_owned());
    }
}

impl<B> Pool<B> {
    /// A pool of buffers that `source` makes.
    pub fn with_source(source: impl BufferSource<B> + 'static, options: PoolOptions) -> Self {
        Self::assemble(source, options, None)
    }

    fn assemble(
        source: impl BufferSource<B> + 'static,
        options: PoolOptions,
        watch: Option<Arc<DeviceWatch>>,
    ) -> Self {
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        Self {
            owner: Arc::new(Owner {
                core: Core::new(id, Box::new(source), options.policy, options.budget),
                poison: options.poison,
                watch,
            }),
        }
    }

    fn core(&self) -> &Arc<Core<B>> {
        &self.owner.core
    }

    /// Lends a buffer of at least `bytes` with exactly the usages `usage`. Contents are unspecified; buffers with
    /// `MAP_WRITE` are mapped, and must be mapped again before the last handle is dropped; those with `MAP_READ` must be
    /// unmapped by then. Waits for the device only when memory or the budget has run out.
    ///
    /// # Errors
    /// [`PoolError::ZeroSize`], [`PoolError::InvalidUsage`], [`PoolError::BufferTooLarge`] for requests that cannot be met;
    /// [`PoolError::BudgetExceeded`] and [`PoolError::OutOfMemory`] when memory ran out although cached buffers were given up;
    /// [`PoolError::DeviceLost`]; [`PoolError::Refused`] when the device refuses the buffer for another reason.
    pub fn acquire(
        &self,
        label: &'static str,
        bytes: u64,
        usage: wgpu::BufferUsages,
    ) -> Result<Lease<B>, PoolError> {
        let request = self.request(label, bytes, usage)?;
        if let Some(watch) = &self.owner.watch {
            watch.tell();
            if let Some(reason) = watch.lost() {
                return Err(PoolError::DeviceLost { reason });
            }
        }
        let lease = self.core().acquire(own_shard(), &request);
        lease.map_err(|failure| self.error(&request, failure))
    }

    #[cold]
    fn error(&self, request: &Request, failure: Failure) -> PoolError {
        let label = request.label;
        let requested_bytes = request.buffer_bytes;
        match failure {
            Failure::Budget {
                budget_bytes,
                report,
            } => PoolError::BudgetExceeded {
                label,
                requested_bytes,
                budget_bytes,
                leased_bytes: report.stats.leased_bytes.current,
                report,
            },
            Failure::OutOfMemory(report) => PoolError::OutOfMemory {
                label,
                requested_bytes,
                leased_bytes: report.stats.leased_bytes.current,
                report,
            },
            Failure::Lost(reason) => PoolError::DeviceLost {
                reason: given_reason(&reason),
            },
            Failure::Refused(reason) => PoolError::Refused {
                label: label.to_owned(),
                reason,
            },
        }
    }

    /// Serves a request from one of the leases that only the caller still holds, the smallest that fits. What fits depends on
    /// what was asked for alone, not on which buffers happened to be cached, so that plans can foretell it. It is at most a
    /// quarter larger than a buffer made for the request: a recording has a use for the larger ones soon, while the policy's
    /// wider bound let each layer of a model keep an activation in a buffer twice its size.
    pub(crate) fn reuse(
        &self,
        leases: &mut [Lease<B>],
        label: &'static str,
        bytes: u64,
        usage: wgpu::BufferUsages,
    ) -> Result<Option<Lease<B>>, PoolError> {
        let request = self.request(label, bytes, usage)?;
        let largest = request.buffer_bytes + request.buffer_bytes / 4;
        let fitting = request.requested_bytes..=largest;
        let smallest = leases
            .iter_mut()
            .filter_map(|lease| {
                let fits = lease.usage() == usage.bits() && fitting.contains(&lease.class_bytes());
                (fits && lease.is_unshared()).then_some(lease)
            })
            .min_by_key(|lease| lease.class_bytes());
        Ok(smallest.map(|lease| {
            lease.relabel(&request);
            lease.clone()
        }))
    }

    fn request(
        &self,
        label: &'static str,
        bytes: u64,
        usage: wgpu::BufferUsages,
    ) -> Result<Request, PoolError> {
        use wgpu::BufferUsages as Usage;
        let contradiction = if usage.is_empty() {
            Some("no usage at all")
        } else if usage.contains(Usage::MAP_READ)
            && !(Usage::MAP_READ | Usage::COPY_DST).contains(usage)
        {
            Some("MAP_READ goes with COPY_DST only")
        } else if usage.contains(Usage::MAP_WRITE)
            && !(Usage::MAP_WRITE | Usage::COPY_SRC).contains(usage)
        {
            Some("MAP_WRITE goes with COPY_SRC only")
        } else {
            None
        };
        if let Some(reason) = contradiction {
            return Err(PoolError::InvalidUsage {
                label,
                usage,
                reason,
            });
        }
        if bytes == 0 {
            return Err(PoolError::ZeroSize { label });
        }
        let max_bytes = self.core().max_buffer_bytes();
        let requested_bytes = bytes
            .checked_next_multiple_of(4)
            .filter(|&b| b <= max_bytes);
        let Some(requested_bytes) = requested_bytes else {
            return Err(PoolError::BufferTooLarge {
                label,
                requested_bytes: bytes,
                limit_bytes: max_bytes,
            });
        };
        Ok(self.core().request(label, requested_bytes, usage.bits()))
    }

    /// Makes the buffers that `demand` will need at one time and caches them, so that taking them then creates nothing.
    /// What is cached already is not made again.
    ///
    /// ```
    /// use dilated_attention::pool::{BufferRequest, Pool, PoolOptions, STORAGE_USAGE};
    /// # let (device, _) = dilated_attention::wgpu::Device::noop(&Default::default());
    /// let pool = Pool::new(&device, PoolOptions::default());
    /// let accumulators = BufferRequest {
    ///     label: "gradients",
    ///     bytes: 4 << 20,
    ///     usage: STORAGE_USAGE,
    ///     count: 3,
    /// };
    /// pool.reserve(&[accumulators][..])?;
    /// assert_eq!((pool.stats().creates, pool.stats().free.current), (3, 3));
    /// # Ok::<(), dilated_attention::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire). What was made before stays cached.
    pub fn reserve(&self, demand: &(impl Demand + ?Sized)) -> Result<(), PoolError> {
        let mut leases = Vec::new();
        for request in demand.buffers() {
            for _ in 0..request.count {
                leases.push(self.acquire(request.label, request.bytes, request.usage)?);
            }
        }
        Ok(())
    }

    /// The figures of this moment.
    pub fn stats(&self) -> PoolStats {
        self.settle();
        self.core().stats()
    }

    /// The figures of this moment, the table of classes, and who holds what.
    pub fn report(&self) -> PoolReport {
        self.settle();
        self.core().report()
    }

    /// Every lease that is out, and every buffer that is pending. Where none should be, these are the leaks.
    pub fn leases(&self) -> Vec<LeaseInfo> {
        self.core().leases()
    }

    /// Lets the peaks start again from what is held now.
    pub fn reset_peaks(&self) {
        self.core().reset_peaks();
    }

    /// Watches what happens, on all threads, until the scope is dropped. Scopes may be open inside each other and in any
    /// order.
    pub fn scope(&self, name: &'static str) -> PoolScope<B> {
        PoolScope::new(self, name)
    }

    /// Gives up everything cached, without waiting for the device. Returns the bytes given up.
    pub fn trim(&self) -> u64 {
        self.trim_to(0)
    }

    /// Gives up cached buffers, the longest unused first, until at most `held_bytes` are held or none is cached. Returns the
    /// bytes given up.
    pub fn trim_to(&self, held_bytes: u64) -> u64 {
        // Lets staging buffers of finished submissions come back first, so that they count as cached.
        self.core().source().poll(false);
        let given_up = self.core().trim_to(held_bytes);
        self.core().source().poll(false);
        given_up
    }

    /// Waits until the device is done with all submitted work, then gives up everything cached: afterwards the device has
    /// the memory back. Returns the bytes given up.
    pub fn force_trim(&self) -> u64 {
        self.core().source().poll(true);
        let given_up = self.core().trim_to(0);
        self.core().source().poll(true);
        given_up
    }

    /// Tells the pool how scarce memory is, in the eyes of the application: it acts at once, and stays so until told
    /// otherwise. (wgpu cannot ask the device.)
    pub fn set_pressure(&self, pressure: Pressure) {
        self.core().set_pressure(pressure);
    }

    /// Sets the hard budget, or lifts it. Below what is held, everything cached is given up at once, what is leased as it
    /// comes back, and requests that need a new buffer are [`PoolError::BudgetExceeded`] until there is room.
    pub fn set_budget_bytes(&self, bytes: Option<u64>) {
        self.core().set_budget(bytes);
    }

    /// Time passes: applications that do not submit call this once a frame, so that buffers which idle are given up in the
    /// end. Submissions count by themselves.
    pub fn maintain(&self) {
        self.core().tick();
    }

    /// Counts a submission that uses leases of this pool, called right after it and before they are dropped;
    /// [`Recorder::submit`](crate::Recorder::submit) does so itself. Tell the returned number to
    /// [`completed`](Self::completed) when the submission is done ([`wgpu::Queue::on_submitted_work_done`]).
    pub fn submitted(&self) -> u64 {
        self.core().submitted()
    }

    /// The submissions up to number `submission` are done: memory of buffers destroyed meanwhile is free.
    pub fn completed(&self, submission: u64) {
        self.core().completed(submission);
    }

    /// The device is lost: further requests are [`PoolError::DeviceLost`], and what is cached is given up. The context of an own
    /// device calls this; on a borrowed device, the application's lost callback should, which lets everything that waits on
    /// contexts over this pool end at once.
    ///
    /// wgpu calls that callback while it holds locks, in which no buffer may be destroyed. So where the pool makes its buffers
    /// of a device itself, what is cached goes with the next call to the pool or to a context that uses it.
    pub fn device_lost(&self, reason: &str) {
        match &self.owner.watch {
            Some(watch) => watch.lose(reason),
            None => self.core().device_lost(reason.to_owned()),
        }
    }

    /// Gives up what is cached if the device was lost meanwhile.
    fn settle(&self) {
        if let Some(watch) = &self.owner.watch {
            watch.tell();
        }
    }

    /// Records what the pool does from now on. A trace that is being recorded is dropped.
    pub fn start_trace(&self) {
        self.core().start_trace();
    }

    /// Ends the recording and returns it; empty if there was none.
    pub fn take_trace(&self) -> Trace {
        let events = self.core().take_trace().unwrap_or_default();
        Trace { events }
    }

    /// Whether recordings fill the buffers that they take with NaN.
    pub(crate) fn poisons(&self) -> bool {
        self.owner.poison
    }

    /// Number of this pool, unique in the process.
    pub fn id(&self) -> u64 {
        self.core().id()
    }
}
