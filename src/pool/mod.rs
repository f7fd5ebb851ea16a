//! The buffer pool: every byte this library uses on a device is lent by it.
//!
//! Creating a `wgpu::Buffer` is dear: its first use clears it and faults its pages in, which takes longer the larger it is
//! (`cargo bench --bench pool` compares first uses of fresh and of reused buffers). So buffers are kept and lent again.
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
//! * Contents are unspecified. With [`PoolOptions::poison`] a recording fills every buffer it takes with NaN first, so that
//!   a read of something never written shows.
//! * Whenever a buffer has to be created, what is held is bounded by what was live of late ([`Policy::Balanced`]) and by an
//!   optional hard budget, never by caps per class: those are a known failure (buffers of a busy class are re-created for
//!   ever while another class idles). A pool that idles keeps what it has; [`Pool::trim`] gives it up.
//! * Running out is an ordinary error: give up what is cached, wait for the device, look again, try again, then a typed
//!   error that carries the [report](PoolReport).
//! * Buffers mapped for writing (staging) wait as *pending* between submission and the moment the device hands them back.
//!
//! The pool is one mutex around plain data (`state`); creation and destruction happen outside the lock.

pub mod size_class;

mod lease;
mod policy;
mod source;
mod state;
mod stats;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use lease::Lease;
pub use policy::Policy;
pub use source::{BufferSource, CreateError, DeviceSource};
pub use stats::{LabelUse, PoolReport, PoolStats};

use crate::error::{Error, Result};
use state::{Eviction, Key, Slot, State};

/// Usages of a buffer that kernels read and write and that uploads and downloads copy to and from.
pub const STORAGE_USAGE: wgpu::BufferUsages = wgpu::BufferUsages::STORAGE
    .union(wgpu::BufferUsages::COPY_SRC)
    .union(wgpu::BufferUsages::COPY_DST);

/// How a pool behaves.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PoolOptions {
    /// What is kept.
    pub policy: Policy,
    /// Most bytes of buffers that may be held (leased, pending and cached together, each at the size of its class); `None`
    /// for no limit.
    pub budget_bytes: Option<u64>,
    /// Fill every buffer that a recording takes with NaN first. For tests.
    pub poison: bool,
}

/// Lends buffers of one device. Clones share one pool.
///
/// ```
/// use dilated_attention::pool::{Pool, PoolOptions, STORAGE_USAGE};
/// # let (device, _) = dilated_attention::wgpu::Device::noop(&Default::default());
/// let pool = Pool::new(&device, PoolOptions::default());
/// let first = pool.acquire("scores", 1000, STORAGE_USAGE)?;
/// drop(first);
/// let second = pool.acquire("weights", 900, STORAGE_USAGE)?; // the same buffer again
/// assert_eq!((pool.stats().creates, pool.stats().hits()), (1, 1));
/// # drop(second);
/// # Ok::<(), dilated_attention::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Pool {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    id: u64,
    source: Arc<dyn BufferSource>,
    options: PoolOptions,
    max_buffer_bytes: u64,
    state: Mutex<State<wgpu::Buffer>>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State<wgpu::Buffer>> {
        // A panic elsewhere while the lock was held cannot leave the plain data half-changed in a way that matters more
        // than never panicking in a drop.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pool {
    /// A pool of buffers of `device`.
    pub fn new(device: &wgpu::Device, options: PoolOptions) -> Self {
        Self::with_source(Arc::new(DeviceSource::new(device.clone())), options)
    }

    /// A pool of buffers that `source` makes: for tests of what happens when that fails.
    pub fn with_source(source: Arc<dyn BufferSource>, options: PoolOptions) -> Self {
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        Self {
            shared: Arc::new(Shared {
                id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
                max_buffer_bytes: source.max_buffer_bytes() & !3,
                source,
                options,
                state: Mutex::new(State::new(options.policy)),
            }),
        }
    }

    /// Lends a buffer of at least `bytes` with exactly the usages `usage`. Contents are unspecified; buffers with
    /// `MAP_WRITE` are mapped, and must be mapped again before the last handle is dropped; those with `MAP_READ` must be
    /// unmapped by then. Waits for the device only when memory or the budget has run out.
    ///
    /// # Errors
    /// [`Error::ZeroSize`], [`Error::InvalidUsage`], [`Error::BufferTooLarge`] for requests that cannot be met;
    /// [`Error::BudgetExceeded`] and [`Error::OutOfMemory`] when memory ran out although cached buffers were given up;
    /// [`Error::Validation`] when the device refuses the buffer for another reason.
    pub fn acquire(
        &self,
        label: &'static str,
        bytes: u64,
        usage: wgpu::BufferUsages,
    ) -> Result<Lease> {
        let (key, requested_bytes) = self.key(label, bytes, usage)?;
        let shared = &self.shared;
        let (mut waited, mut ran_out) = (false, false);
        loop {
            let mut evicted;
            {
                let mut state = shared.lock();
                if let Some(slot) = state.take(key, requested_bytes, label) {
                    if ran_out {
                        state.recovered();
                    }
                    return Ok(Lease::new(slot, requested_bytes, label, shared));
                }
                evicted = state.evict_for_retention(key.class_bytes);
                if let Some(budget_bytes) = shared.options.budget_bytes {
                    let room = budget_bytes.saturating_sub(key.class_bytes);
                    evicted.extend(state.evict_to(room, Eviction::Budget));
                    if state.committed_bytes().saturating_add(key.class_bytes) > budget_bytes {
                        let stats = state.stats();
                        if stats.pending == 0 || waited {
                            return Err(Error::BudgetExceeded {
                                label,
                                requested_bytes: key.class_bytes,
                                budget_bytes,
                                leased_bytes: stats.leased_bytes,
                                report: Box::new(state.report()),
                            });
                        }
                        // What is pending comes back when the device is done with it.
                        drop(state);
                        drop(evicted);
                        waited = true;
                        shared.source.poll(true);
                        continue;
                    }
                }
                state.reserve(key);
            }
            drop(evicted);
            let mapped = usage.contains(wgpu::BufferUsages::MAP_WRITE);
            match shared.source.create(label, key.class_bytes, usage, mapped) {
                Ok(buffer) => {
                    let mut state = shared.lock();
                    state.created(key, requested_bytes, label);
                    if ran_out {
                        state.recovered();
                    }
                    drop(state);
                    return Ok(Lease::new(
                        Slot { buffer, key },
                        requested_bytes,
                        label,
                        shared,
                    ));
                }
                Err(CreateError::Refused(reason)) => {
                    shared.lock().unreserve(key);
                    return Err(Error::Validation {
                        label: label.to_owned(),
                        reason,
                    });
                }
                Err(CreateError::OutOfMemory) => {
                    let mut state = shared.lock();
                    state.unreserve(key);
                    if ran_out {
                        return Err(Error::OutOfMemory {
                            label,
                            requested_bytes: key.class_bytes,
                            leased_bytes: state.stats().leased_bytes,
                            report: Box::new(state.report()),
                        });
                    }
                    let evicted = state.evict_to(0, Eviction::OutOfMemory);
                    drop(state);
                    drop(evicted);
                    ran_out = true;
                    // Memory that dropped buffers held is free only once no submission in flight uses them.
                    shared.source.poll(true);
                }
            }
        }
    }

    /// Serves a request from a lease that only the caller still holds, if it fits.
    pub(crate) fn reuse(
        &self,
        lease: &mut Lease,
        label: &'static str,
        bytes: u64,
        usage: wgpu::BufferUsages,
    ) -> bool {
        let Ok((key, requested_bytes)) = self.key(label, bytes, usage) else {
            return false;
        };
        let limit = self
            .shared
            .options
            .policy
            .borrow_limit_bytes(key.class_bytes);
        let have = lease.key();
        self.shared.lock().keeps_released()
            && have.usage == key.usage
            && (key.class_bytes..=limit).contains(&have.class_bytes)
            && lease.relabel(requested_bytes, label)
    }

    fn key(
        &self,
        label: &'static str,
        bytes: u64,
        usage: wgpu::BufferUsages,
    ) -> Result<(Key, u64)> {
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
            return Err(Error::InvalidUsage {
                label,
                usage,
                reason,
            });
        }
        if bytes == 0 {
            return Err(Error::ZeroSize { label });
        }
        let max_bytes = self.shared.max_buffer_bytes;
        let requested_bytes = bytes
            .checked_next_multiple_of(4)
            .filter(|&b| b <= max_bytes);
        let Some(requested_bytes) = requested_bytes else {
            return Err(Error::BufferTooLarge {
                label,
                requested_bytes: bytes,
                limit_bytes: max_bytes,
            });
        };
        let key = Key {
            usage: usage.bits(),
            class_bytes: size_class::class_bytes(requested_bytes, max_bytes),
        };
        Ok((key, requested_bytes))
    }

    /// The figures of this moment.
    pub fn stats(&self) -> PoolStats {
        self.shared.lock().stats()
    }

    /// The figures of this moment and who holds the most.
    pub fn report(&self) -> PoolReport {
        self.shared.lock().report()
    }

    /// Lets the peaks start again from what is held now.
    pub fn reset_peaks(&self) {
        self.shared.lock().reset_peaks();
    }

    /// Gives up everything cached. What is leased stays.
    pub fn trim(&self) {
        self.trim_to(0);
    }

    /// Gives up cached buffers, the longest unused first, until at most `held_bytes` are held or none is cached.
    pub fn trim_to(&self, held_bytes: u64) {
        // Lets staging buffers of finished submissions come back first, so that they count as cached.
        self.shared.source.poll(false);
        let evicted = self.shared.lock().evict_to(held_bytes, Eviction::Trim);
        drop(evicted);
        self.shared.source.poll(false);
    }

    /// How the pool behaves.
    pub fn options(&self) -> &PoolOptions {
        &self.shared.options
    }

    /// Number of this pool, unique in the process.
    pub(crate) fn id(&self) -> u64 {
        self.shared.id
    }
}
