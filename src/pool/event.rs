//! The events of a [trace](super::Trace).

use web_time::Instant;

use super::shard::{Fit, Place};
use crate::label::Label;

/// Why a cached buffer was destroyed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub enum EvictionCause {
    /// Held bytes exceeded the policy's bound, which follows live bytes.
    Retention,
    /// Too many buffers, or too many bytes, were cached.
    Cap,
    /// It was unused for too long.
    Idle,
    /// The application or a watermark said that memory is scarce.
    Pressure,
    /// To stay within the budget.
    Budget,
    /// The device ran out of memory.
    OutOfMemory,
    /// The application asked for it.
    Trim,
}

/// How a lease was served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum Outcome {
    /// By a cached buffer of the size that would otherwise be created.
    Exact,
    /// By a larger cached buffer.
    Borrowed,
    /// By a buffer that was cached in another thread's shard.
    Shared,
    /// By a buffer that only the same recording still held.
    WithinRecording,
    /// By a new buffer.
    Created,
}

/// One event of a pool.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub enum Event {
    /// This buffer existed when the trace began.
    Exists {
        /// Serial number of the buffer.
        buffer: u64,
        /// Its bytes.
        buffer_bytes: u64,
        /// Bits of its usages.
        usage: u32,
        /// Whether it was cached, not leased or pending.
        free: bool,
    },
    /// A lease began.
    Acquire {
        /// Serial number of the buffer.
        buffer: u64,
        /// Bytes asked for.
        requested_bytes: u64,
        /// Bytes of the buffer.
        buffer_bytes: u64,
        /// Bits of its usages.
        usage: u32,
        /// Label of the lease.
        label: Label,
        /// How it was served.
        outcome: Outcome,
    },
    /// A lease ended.
    Release {
        /// Serial number of the buffer.
        buffer: u64,
        /// Whether the buffer was cached. Otherwise the policy did not keep it, and it was destroyed.
        kept: bool,
    },
    /// A lease ended, but the device has not yet handed the buffer back.
    Suspend {
        /// Serial number of the buffer.
        buffer: u64,
    },
    /// The device handed the buffer back, or never will.
    Resume {
        /// Serial number of the buffer.
        buffer: u64,
        /// Whether the buffer is usable.
        usable: bool,
        /// Whether the buffer was cached. Otherwise it was unusable or the policy did not keep it, and it was destroyed.
        kept: bool,
    },
    /// A cached buffer was destroyed.
    Evict {
        /// Serial number of the buffer.
        buffer: u64,
        /// Why.
        cause: EvictionCause,
    },
    /// A submission, or a call of [`Pool::maintain`](super::Pool::maintain).
    Tick,
}

impl Event {
    pub(super) fn exists(buffer: u64, buffer_bytes: u64, usage: u32, place: Place) -> Self {
        Self::Exists {
            buffer,
            buffer_bytes,
            usage,
            free: place == Place::Free,
        }
    }
}

impl From<Fit> for Outcome {
    fn from(fit: Fit) -> Self {
        match fit {
            Fit::Exact => Self::Exact,
            Fit::Borrowed => Self::Borrowed,
        }
    }
}

/// The events of a trace under way, with the microseconds since it began.
#[derive(Debug)]
pub(super) struct TraceLog {
    begin: Instant,
    events: Vec<(u64, Event)>,
}

impl TraceLog {
    pub fn new(existing: Vec<Event>) -> Self {
        Self {
            begin: Instant::now(),
            events: existing.into_iter().map(|event| (0, event)).collect(),
        }
    }

    pub fn push(&mut self, event: Event) {
        let micros = self.begin.elapsed().as_micros() as u64;
        self.events.push((micros, event));
    }

    pub fn finish(self) -> Vec<(u64, Event)> {
        self.events
    }
}
