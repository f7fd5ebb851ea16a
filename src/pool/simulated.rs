//! Simulated buffers without memory, and a source of them that can fail on purpose. Tests, replays and simulations run a
//! pool with them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::source::{BufferSource, CreateError};
use crate::wgpu::BufferUsages;

/// A buffer of a [`SimulatedSource`]. It has no memory.
#[derive(Debug)]
pub struct SimulatedBuffer {
    bytes: u64,
    existing: Arc<Existing>,
}

#[cfg(feature = "testing")]
impl SimulatedBuffer {
    /// Bytes that a real buffer would have.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for SimulatedBuffer {
    fn drop(&mut self) {
        self.existing.buffers.fetch_sub(1, Ordering::Relaxed);
        self.existing.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[derive(Debug, Default)]
struct Existing {
    buffers: AtomicU64,
    bytes: AtomicU64,
    creations: AtomicU64,
}

/// How a [`SimulatedSource`] fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// A creation fails if more than this many bytes would exist.
    pub memory_bytes: Option<u64>,
    /// Creations from this number on (the first is 0) run out of memory ...
    pub fail_at: Option<u64>,
    /// ... this many times in a row.
    pub fail_times: u64,
    /// The creation with this number and all later ones find the device lost.
    pub lose_at: Option<u64>,
}

/// A source of simulated buffers.
///
/// ```
/// use dilated_attention::pool::{Pool, PoolError, PoolOptions, STORAGE_USAGE};
/// use dilated_attention::testing::{Faults, SimulatedSource};
/// let memory = Faults { memory_bytes: Some(1 << 20), ..Faults::default() };
/// let source = SimulatedSource::new(1 << 30).with_faults(memory);
/// let pool = Pool::from_source(source, PoolOptions::default());
/// drop(pool.acquire("first", 900 << 10, STORAGE_USAGE)?);
/// // The cached buffer gives way to one of another usage.
/// let second = pool.acquire("second", 600 << 10, dilated_attention::wgpu::BufferUsages::COPY_DST)?;
/// assert_eq!(pool.stats().evictions.out_of_memory, 1);
/// assert!(matches!(pool.acquire("third", 600 << 10, STORAGE_USAGE), Err(PoolError::OutOfMemory { .. })));
/// # Ok::<(), PoolError>(())
/// ```
#[derive(Clone, Debug)]
pub struct SimulatedSource {
    max_buffer_bytes: u64,
    faults: Faults,
    existing: Arc<Existing>,
}

impl SimulatedSource {
    /// A source whose largest buffer has `max_buffer_bytes`.
    pub fn new(max_buffer_bytes: u64) -> Self {
        Self {
            max_buffer_bytes,
            faults: Faults::default(),
            existing: Arc::default(),
        }
    }

    /// The same source, failing as `faults` says.
    #[cfg(feature = "testing")]
    pub fn with_faults(self, faults: Faults) -> Self {
        Self { faults, ..self }
    }

    /// Number of buffers that exist.
    #[cfg(feature = "testing")]
    pub fn buffers(&self) -> u64 {
        self.existing.buffers.load(Ordering::Relaxed)
    }

    /// Bytes of the buffers that exist.
    #[cfg(feature = "testing")]
    pub fn bytes(&self) -> u64 {
        self.existing.bytes.load(Ordering::Relaxed)
    }
}

impl BufferSource<SimulatedBuffer> for SimulatedSource {
    fn create(&self, _: &str, bytes: u64, _: BufferUsages) -> Result<SimulatedBuffer, CreateError> {
        let number = self.existing.creations.fetch_add(1, Ordering::Relaxed);
        let Faults {
            memory_bytes,
            fail_at,
            fail_times,
            lose_at,
        } = self.faults;
        if lose_at.is_some_and(|at| number >= at) {
            return Err(CreateError::Lost("simulated".to_owned()));
        }
        let failing =
            fail_at.is_some_and(|at| (at..at.saturating_add(fail_times)).contains(&number));
        let total = self.existing.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if failing || memory_bytes.is_some_and(|memory| total > memory) {
            self.existing.bytes.fetch_sub(bytes, Ordering::Relaxed);
            return Err(CreateError::OutOfMemory);
        }
        self.existing.buffers.fetch_add(1, Ordering::Relaxed);
        Ok(SimulatedBuffer {
            bytes,
            existing: self.existing.clone(),
        })
    }

    fn poll(&self, _: bool) {}

    fn max_buffer_bytes(&self) -> u64 {
        self.max_buffer_bytes
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::super::lease::Pending;
    use super::super::{Pool, PoolOptions, STORAGE_USAGE};
    use super::*;
    use crate::error::PoolError;

    type Result<T> = std::result::Result<T, PoolError>;

    type Returning = Arc<Mutex<Vec<Pending<SimulatedBuffer>>>>;

    /// A device that hands pending buffers back when it is waited for.
    #[derive(Debug)]
    struct Device {
        source: SimulatedSource,
        pending: Returning,
    }

    impl BufferSource<SimulatedBuffer> for Device {
        fn create(
            &self,
            label: &str,
            bytes: u64,
            usage: BufferUsages,
        ) -> std::result::Result<SimulatedBuffer, CreateError> {
            self.source.create(label, bytes, usage)
        }

        fn poll(&self, wait: bool) {
            let returned = match self.pending.lock() {
                Ok(mut pending) if wait => std::mem::take(&mut *pending),
                _ => Vec::new(),
            };
            returned.into_iter().for_each(Pending::ready);
        }

        fn max_buffer_bytes(&self) -> u64 {
            self.source.max_buffer_bytes()
        }
    }

    /// A pool with 8 MiB, of which four buffers of 1 MiB are pending, three cached and one leased.
    fn crowded(
        faults: Faults,
        options: PoolOptions,
    ) -> Result<(
        Pool<SimulatedBuffer>,
        Vec<super::super::Lease<SimulatedBuffer>>,
    )> {
        let pending = Returning::default();
        let device = Device {
            source: SimulatedSource::new(1 << 30).with_faults(faults),
            pending: pending.clone(),
        };
        let pool = Pool::from_source(device, options);
        let mut leases = Vec::new();
        for _ in 0..8 {
            leases.push(pool.acquire("a", 1 << 20, STORAGE_USAGE)?);
        }
        for lease in leases.drain(..4) {
            if let (Ok(suspended), Ok(mut pending)) = (lease.suspend(), pending.lock()) {
                pending.push(suspended);
            }
        }
        leases.truncate(1);
        let stats = pool.stats();
        assert_eq!(
            (stats.pending.current, stats.free.current),
            (4, 3),
            "{stats}"
        );
        assert!(stats.identities_hold());
        Ok((pool, leases))
    }

    #[test]
    fn what_is_pending_is_waited_for_when_memory_runs_out() -> Result<()> {
        let memory = Faults {
            memory_bytes: Some(8 << 20),
            ..Faults::default()
        };
        // No watermarks: they would keep buffers from being cached.
        let budget = PoolOptions::default()
            .with_budget_bytes(8 << 20)
            .with_watermarks(2.0, 2.0);
        for (faults, options) in [
            (memory, PoolOptions::default()),
            (Faults::default(), budget),
        ] {
            let (pool, kept) = crowded(faults, options.clone())?;
            // Of another usage and size, so that nothing there fits: all of it has to go.
            let large = pool.acquire("large", 7 << 20, BufferUsages::UNIFORM)?;
            let stats = pool.stats();
            assert_eq!(
                (stats.pending.current, stats.free.current),
                (0, 0),
                "{stats}"
            );
            assert_eq!(stats.recoveries, 1, "{stats}");
            assert!(stats.identities_hold(), "{stats}");
            drop((large, kept));

            let (pool, _kept) = crowded(faults, options)?;
            let too_large = pool.acquire("too large", 8 << 20, BufferUsages::UNIFORM);
            assert!(matches!(
                too_large,
                Err(PoolError::OutOfMemory { .. } | PoolError::BudgetExceeded { .. })
            ));
            assert!(pool.stats().identities_hold());
        }
        Ok(())
    }

    #[test]
    fn a_pending_buffer_that_never_returns_is_given_up() -> Result<()> {
        let pool = Pool::from_source(SimulatedSource::new(1 << 30), PoolOptions::default());
        let lease = pool.acquire("a", 1000, STORAGE_USAGE)?;
        let shared = lease.clone();
        let Err(lease) = lease.suspend() else {
            return Err(PoolError::DeviceLost {
                reason: "a shared lease was suspended".to_owned(),
            });
        };
        drop(shared);
        drop(lease.suspend());
        let stats = pool.stats();
        assert_eq!((stats.pending.current, stats.destroys), (0, 1), "{stats}");
        assert!(stats.identities_hold());
        Ok(())
    }
}
