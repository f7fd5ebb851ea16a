//! Buffers that do not exist, and a source of them that fails on purpose: what tests, replays and simulations drive a pool
//! with.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::source::{BufferSource, CreateError};
use crate::wgpu::BufferUsages;

/// A buffer of a [`SimulatedSource`], without memory.
#[derive(Debug)]
pub struct SimulatedBuffer {
    bytes: u64,
    existing: Arc<Existing>,
}

impl SimulatedBuffer {
    /// Bytes that a real one would have.
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
    /// No memory beyond this many bytes in existence.
    pub memory_bytes: Option<u64>,
    /// The creations from this one on (the first is 0) find no memory ...
    pub fail_at: Option<u64>,
    /// ... this many times in a row.
    pub fail_times: u64,
    /// The creation with this number finds the device lost, as do all after it.
    pub lose_at: Option<u64>,
}

/// Makes buffers that do not exist.
///
/// ```
/// use dilated_attention::pool::{Faults, Pool, PoolOptions, SimulatedSource, STORAGE_USAGE};
/// use dilated_attention::Error;
/// let memory = Faults { memory_bytes: Some(1 << 20), ..Faults::default() };
/// let source = SimulatedSource::new(1 << 30).with_faults(memory);
/// let pool = Pool::with_source(source, PoolOptions::default());
/// drop(pool.acquire("first", 900 << 10, STORAGE_USAGE)?);
/// // The cached buffer gives way to one of another usage.
/// let second = pool.acquire("second", 600 << 10, dilated_attention::wgpu::BufferUsages::COPY_DST)?;
/// assert_eq!(pool.stats().evictions.out_of_memory, 1);
/// assert!(matches!(pool.acquire("third", 600 << 10, STORAGE_USAGE), Err(Error::OutOfMemory { .. })));
/// # Ok::<(), Error>(())
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

    /// The same, failing as `faults` say.
    pub fn with_faults(self, faults: Faults) -> Self {
        Self { faults, ..self }
    }

    /// Buffers in existence.
    pub fn buffers(&self) -> u64 {
        self.existing.buffers.load(Ordering::Relaxed)
    }

    /// Their bytes.
    pub fn bytes(&self) -> u64 {
        self.existing.bytes.load(Ordering::Relaxed)
    }
}

impl BufferSource<SimulatedBuffer> for SimulatedSource {
    fn create(
        &self,
        _: &'static str,
        bytes: u64,
        _: BufferUsages,
    ) -> Result<SimulatedBuffer, CreateError> {
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
