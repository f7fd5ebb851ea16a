//! The buffer pool. It lends every buffer that this library uses on a device.
//!
//! Creating a `wgpu::Buffer` is expensive, because its first use clears it and faults its pages in. The larger the buffer,
//! the longer this takes (`cargo bench --bench pool`: 64 MiB take 200 ms new and 0.3 ms reused on lavapipe). So the pool
//! keeps buffers and lends them again.
//!
//! **The reuse rule.** *A buffer may be lent again as soon as every command that uses the old lease comes before every
//! command of the new one on the queue.* This holds by construction. Every write, copy, clear and read is a recorded
//! command; nothing goes through `Queue::write_buffer`, which would run before the recorded commands of the next submission.
//! A [`Recorder`](crate::Recorder) keeps a handle of every lease it uses until it is submitted. A lease goes back when its
//! last handle is dropped, so the commands of the next lease are recorded, and hence submitted, later. Within one recording,
//! a buffer that only this recording still holds may serve again at once, because its commands run in order.
//!
//! * One lease is one whole buffer. wgpu forbids binding the same buffer for reading and for writing in one dispatch, even
//!   at disjoint ranges. Slices of one big buffer would therefore force every binding to be writable.
//! * Buffers with the same usages and [size class](size_class) are interchangeable. Labels belong to leases, not to buffers.
//! * Contents of a new lease are unspecified. [Tensors](crate::Tensor) know whether they were written. With
//!   [`PoolOptions::with_poison`], a recording first fills every buffer it takes with NaN, so that reading elements that were
//!   never written shows.
//! * Held memory is bounded by live memory, not by caps per class. Caps per class re-create the buffers of a busy class for
//!   ever while another class idles. A [`Policy`] sets the bound; the default keeps held bytes within 1.25 times the recent
//!   peak of live bytes. The pool applies it whenever it has to create a buffer, and at the end of each window of 1024
//!   leases or 64 submissions. Buffers that idle for many windows are destroyed as well.
//! * A buffer of the application's that is taken in as a tensor ([`Context::import_tensor`](crate::Context::import_tensor)) is
//!   never lent and never counts as the pool's own.
//! * Running out of memory is an ordinary error. The pool destroys what is cached, waits for the device, and tries again. If
//!   that fails, it returns a typed error that carries the [report](PoolReport).
//! * Staging buffers, which are mapped for writing, are *pending* from submission until the device hands them back.
//! * Destroying a buffer that submitted work still uses frees no memory yet. Its bytes count as *draining*, and as held,
//!   until the submissions made before it came back are done ([`Pool::submitted`]).
//!
//! **How it is built.** `shard` holds lists and counts: plain data behind a lock. There are eight shards; each thread has
//! its own, and beyond eight, threads share. A hit and a return touch one shard only: no heap, no wgpu call, no shared
//! counter. `ledger` holds what concerns all shards: peaks, windows, evictions. `core` takes all locks where one shard is
//! not enough: on a miss, and when a gauge of a shard reaches its ceiling. So peaks and caps are exact although there is no
//! common counter. No lock is held while buffers are created and destroyed, or while policies and sources are called.
//!
//! All of it is generic over the buffer. [Replays](Trace::replay), tests, fuzzers and the model checker run the same code with
//! simulated buffers, without a device.
//!
//! Bind groups are not pooled. Creating one takes 8 us, finding one in a map 0.02 us, and the cheapest dispatch with its
//! wait 320 us (`cargo bench --bench pool`, lavapipe). So pooling them would save a fortieth of the smallest possible work,
//! and pooled bind groups would keep buffers alive that the pool has given up. If you want to cache them all the same,
//! [`Lease::buffer_serial`] is a stable key.
//!
//! # Patterns
//!
//! Temporary buffers live as long as a block, and the next block gets the same buffers again:
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
//! [`PersistentBuffer`] is kept from call to call and grows. [`Recorder::empty_together`](crate::Recorder::empty_together)
//! puts several tensors, such as q, k and v, into one buffer. [`Pool::reserve`] creates buffers ahead, for a plan or a list
//! of [`BufferRequest`]s. The policy [`NoPooling`] turns pooling off, for comparison:
//!
//! ```
//! # use dilated_attention::pool::{NoPooling, Pool, PoolOptions, STORAGE_USAGE};
//! # let (device, _) = dilated_attention::wgpu::Device::noop(&Default::default());
//! let pool = Pool::new(&device, PoolOptions::default().with_policy(NoPooling));
//! drop(pool.acquire("scores", 1 << 20, STORAGE_USAGE)?);
//! assert_eq!((pool.stats().destroys, pool.stats().held_bytes.current), (1, 0));
//! # Ok::<(), dilated_attention::Error>(())
//! ```
//!
//! A trace records everything a pool does. You can save it, look at it over time, or replay it under another policy:
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
//! let exact = trace.replay(PoolOptions::default().with_policy(Exact), 1 << 30)?;
//! assert_eq!((pool.stats().creates, exact.stats.creates), (1, 2));
//! assert_eq!(trace.timeline().samples.len(), 4);
//! # Ok::<(), dilated_attention::Error>(())
//! ```

pub mod policy;
pub mod size_class;

mod acquire;
mod core;
mod demand;
mod device_source;
mod event;
mod import;
mod lease;
mod ledger;
mod lists;
mod locked_pool;
mod options;
mod persistent;
mod scope;
mod shard;
pub(crate) mod simulated;
mod source;
mod stats;
mod sync;
mod threads;
mod timeline;
mod trace;
mod wgpu_buffer;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

pub use crate::error::PoolError;
pub use crate::pool_figures::{
    ClassUse, Counter, Evictions, LabelUse, LeaseInfo, PoolReport, PoolStats, ScopeReport,
};
pub use demand::{BufferRequest, Demand};
pub use device_source::DeviceSource;
pub use event::EvictionCause;
pub use lease::Lease;
pub use options::PoolOptions;
pub use persistent::PersistentBuffer;
pub use policy::{Balanced, Exact, Lean, Limits, NoPooling, Policy, Pressure, Speed, Usage};
pub use scope::PoolScope;
pub use source::{BufferSource, CreateError};
pub use timeline::{MarkKind, Timeline, TimelineMark, TimelineSample};
pub use trace::Trace;

use self::core::Core;
use crate::label::Label;
use crate::watch::{DeviceWatch, WhenLost, given_reason};
use acquire::Failure;
use shard::Request;
use threads::own_shard;

/// Usages of a storage buffer: kernels read and write it, uploads copy to it, downloads copy from it.
pub const STORAGE_USAGE: wgpu::BufferUsages = wgpu::BufferUsages::STORAGE
    .union(wgpu::BufferUsages::COPY_SRC)
    .union(wgpu::BufferUsages::COPY_DST);

/// Usages of a uniform buffer that holds kernel parameters.
pub const PARAMS_USAGE: wgpu::BufferUsages =
    wgpu::BufferUsages::UNIFORM.union(wgpu::BufferUsages::COPY_DST);

/// Usages of a staging buffer: the host writes it, the device copies from it.
pub const STAGING_USAGE: wgpu::BufferUsages =
    wgpu::BufferUsages::MAP_WRITE.union(wgpu::BufferUsages::COPY_SRC);

/// Usages of a readback buffer: the device copies to it, the host reads it.
pub const READBACK_USAGE: wgpu::BufferUsages =
    wgpu::BufferUsages::MAP_READ.union(wgpu::BufferUsages::COPY_DST);

/// Lends buffers of one device. Clones share one pool. When the last clone is dropped, cached buffers are destroyed at once,
/// and leased ones when they come back.
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
    /// The watch of the pool's device; `None` with a source of the caller's.
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

    /// A pool of buffers of the watched device.
    pub(crate) fn watched(watch: Arc<DeviceWatch>, options: PoolOptions) -> Self {
        let source = DeviceSource::watched(watch.clone());
        let pool = Self::assemble(source, options, Some(watch.clone()));
        pool.give_up_when_lost(&watch);
        pool
    }

    /// The watch of the pool's device; `None` with a source of the caller's.
    pub(crate) fn watch(&self) -> Option<&Arc<DeviceWatch>> {
        self.owner.watch.as_ref()
    }

    /// Makes `watch` tell the pool when the device is lost.
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
    /// A pool of buffers that `source` creates.
    pub fn from_source(source: impl BufferSource<B> + 'static, options: PoolOptions) -> Self {
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

    /// Lends a buffer of at least `bytes` bytes with exactly the usages `usage`. Its contents are unspecified. A buffer with
    /// `MAP_WRITE` is mapped, and must be mapped again before the last handle is dropped. A buffer with `MAP_READ` must be
    /// unmapped by then. The call waits for the device only when memory or the budget has run out.
    ///
    /// # Errors
    /// [`PoolError::ZeroSize`], [`PoolError::InvalidUsage`] and [`PoolError::BufferTooLarge`] for requests that can never be met;
    /// [`PoolError::BudgetExceeded`] and [`PoolError::OutOfMemory`] when memory ran out although cached buffers were destroyed;
    /// [`PoolError::DeviceLost`]; [`PoolError::Refused`] when the device refuses the buffer for another reason.
    pub fn acquire(
        &self,
        label: impl Into<Label>,
        bytes: u64,
        usage: wgpu::BufferUsages,
    ) -> Result<Lease<B>, PoolError> {
        let label = label.into();
        let request = self.request(&label, bytes, usage)?;
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
        let label = request.label.clone();
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
            Failure::Refused(reason) => PoolError::Refused { label, reason },
        }
    }

    /// Serves a request from one of `leases`, which only the caller still holds: the smallest that fits. A lease fits by the
    /// size it was requested with, not by the buffer that happened to be cached, so that plans can predict it. It may be at
    /// most a quarter larger than a buffer created for the request, because the recording soon needs the larger ones. With
    /// the policy's wider bound, each layer of a model would keep an activation in a buffer twice its size.
    pub(crate) fn reuse(
        &self,
        leases: &mut [Lease<B>],
        label: impl Into<Label>,
        bytes: u64,
        usage: wgpu::BufferUsages,
    ) -> Result<Option<Lease<B>>, PoolError> {
        let label = label.into();
        let request = self.request(&label, bytes, usage)?;
        let largest = request.buffer_bytes + request.buffer_bytes / 4;
        let fitting = request.requested_bytes..=largest;
        let smallest = leases
            .iter_mut()
            .filter_map(|lease| {
                let fits = lease.usage() == usage && fitting.contains(&lease.class_bytes());
                (fits && lease.is_unshared()).then_some(lease)
            })
            .min_by_key(|lease| lease.class_bytes());
        Ok(smallest.map(|lease| {
            lease.relabel(&request);
            lease.clone()
        }))
    }

    fn request<'a>(
        &self,
        label: &'a Label,
        bytes: u64,
        usage: wgpu::BufferUsages,
    ) -> Result<Request<'a>, PoolError> {
        use wgpu::BufferUsages as Usage;
        let contradiction = if usage.is_empty() {
            Some("a buffer needs at least one, such as those of STORAGE_USAGE")
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
                label: label.clone(),
                usage,
                reason,
            });
        }
        if bytes == 0 {
            return Err(PoolError::ZeroSize {
                label: label.clone(),
            });
        }
        let max_bytes = self.core().max_buffer_bytes();
        let requested_bytes = bytes
            .checked_next_multiple_of(4)
            .filter(|&b| b <= max_bytes);
        let Some(requested_bytes) = requested_bytes else {
            return Err(PoolError::BufferTooLarge {
                label: label.clone(),
                requested_bytes: bytes,
                limit_bytes: max_bytes,
            });
        };
        Ok(self.core().request(label, requested_bytes, usage.bits()))
    }

    /// Creates the buffers that `demand` needs at one time and caches them, so that acquiring them later creates nothing.
    /// Buffers that are cached already are not created again.
    ///
    /// ```
    /// use dilated_attention::pool::{BufferRequest, Pool, PoolOptions, STORAGE_USAGE};
    /// # let (device, _) = dilated_attention::wgpu::Device::noop(&Default::default());
    /// let pool = Pool::new(&device, PoolOptions::default());
    /// let accumulators = BufferRequest {
    ///     label: "gradients".into(),
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
    /// As [`acquire`](Self::acquire). Buffers created before the error stay cached.
    pub fn reserve(&self, demand: &(impl Demand + ?Sized)) -> Result<(), PoolError> {
        let mut leases = Vec::new();
        for request in demand.buffers() {
            for _ in 0..request.count {
                leases.push(self.acquire(&request.label, request.bytes, request.usage)?);
            }
        }
        Ok(())
    }

    /// The current figures.
    pub fn stats(&self) -> PoolStats {
        self.settle();
        self.core().stats()
    }

    /// The current figures, the table of size classes, and who holds what.
    pub fn report(&self) -> PoolReport {
        self.settle();
        self.core().report()
    }

    /// All live leases and pending buffers, but not imported ones. Where there should be none, these are leaks.
    pub fn leases(&self) -> Vec<LeaseInfo> {
        self.core().leases()
    }

    /// Resets all peaks to the current values.
    pub fn reset_peaks(&self) {
        self.core().reset_peaks();
    }

    /// Opens a scope, which watches what all threads do with the pool until it is dropped. Scopes may nest and overlap.
    pub fn scope(&self, name: impl Into<Label>) -> PoolScope<B> {
        PoolScope::new(self, name.into())
    }

    /// Destroys everything cached, without waiting for the device. Returns the bytes destroyed.
    pub fn trim(&self) -> u64 {
        self.trim_to(0)
    }

    /// Destroys cached buffers, the longest unused first, until at most `held_bytes` are held or none is cached. Returns the
    /// bytes destroyed.
    pub fn trim_to(&self, held_bytes: u64) -> u64 {
        // Lets staging buffers of finished submissions come back first, so that they count as cached.
        self.core().source().poll(false);
        let given_up = self.core().trim_to(held_bytes);
        self.core().source().poll(false);
        given_up
    }

    /// Waits until the device is done with all submitted work, then destroys everything cached, so that the device has the
    /// memory back. Returns the bytes destroyed.
    pub fn force_trim(&self) -> u64 {
        self.core().source().poll(true);
        let given_up = self.core().trim_to(0);
        self.core().source().poll(true);
        given_up
    }

    /// Tells the pool how scarce memory is, because wgpu cannot ask the device. The pool acts at once. The pressure stays
    /// until the next call.
    pub fn set_pressure(&self, pressure: Pressure) {
        self.core().set_pressure(pressure);
    }

    /// Sets the hard budget, or removes it with `None`. If more is held than the budget allows, cached buffers are destroyed
    /// at once and leased ones when they come back. Until there is room, requests that need a new buffer are
    /// [`PoolError::BudgetExceeded`].
    pub fn set_budget_bytes(&self, bytes: Option<u64>) {
        self.core().set_budget(bytes);
    }

    /// Counts a frame as passed time. Call it once a frame if your application does not submit through a recorder, so that
    /// idle buffers are destroyed eventually. Submissions count by themselves.
    pub fn maintain(&self) {
        self.core().tick();
    }

    /// Counts a submission of your own that uses leases of this pool. Call it right after the submission, before the leases
    /// are dropped. When the submission is done ([`wgpu::Queue::on_submitted_work_done`]), pass the returned number to
    /// [`completed`](Self::completed). [`Recorder::submit`](crate::Recorder::submit) and
    /// [`PoolEncoder::submit`](crate::PoolEncoder::submit) do all this themselves.
    pub fn submitted(&self) -> u64 {
        self.core().submitted()
    }

    /// Tells the pool that all submissions up to number `submission` are done, so that the memory of buffers destroyed
    /// meanwhile is free.
    pub fn completed(&self, submission: u64) {
        self.core().completed(submission);
    }

    /// Tells the pool that the device is lost. Cached buffers are destroyed, and further requests are [`PoolError::DeviceLost`].
    /// A context that owns its device calls this itself. On a borrowed device, call it in the application's device-lost
    /// callback, so that everything that waits on contexts over this pool ends at once.
    ///
    /// wgpu calls that callback while it holds locks under which no buffer may be destroyed. So a pool of a device's buffers
    /// destroys its cached buffers in the next call to the pool, or to a context that uses it.
    pub fn device_lost(&self, reason: &str) {
        match &self.owner.watch {
            Some(watch) => watch.lose(reason),
            None => self.core().device_lost(reason.to_owned()),
        }
    }

    /// Destroys cached buffers if the device was lost meanwhile.
    fn settle(&self) {
        if let Some(watch) = &self.owner.watch {
            watch.tell();
        }
    }

    /// Starts to record what the pool does. An earlier trace that is still being recorded is dropped.
    pub fn start_trace(&self) {
        self.core().start_trace();
    }

    /// Ends the trace and returns it; empty if none was started.
    pub fn take_trace(&self) -> Trace {
        let events = self.core().take_trace().unwrap_or_default();
        Trace { events }
    }

    /// Whether recordings fill the buffers they take with NaN ([`PoolOptions::with_poison`]).
    pub(crate) fn poisons(&self) -> bool {
        self.owner.poison
    }

    /// Number of this pool, unique in the process.
    pub fn id(&self) -> u64 {
        self.core().id()
    }
}

#[cfg(test)]
mod tests;
