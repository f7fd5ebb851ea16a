//! What a pool does, as it is told to a [trace](super::Trace).

use std::borrow::Cow;

use web_time::Instant;

use super::shard::{Fit, Place};

/// Why a cached buffer is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum EvictionCause {
    /// To keep what is held near what is live.
    Retention,
    /// Too many buffers, or bytes of them, were cached.
    Cap,
    /// It was not used for long.
    Idle,
    /// Memory is scarce, as the application or a watermark said.
    Pressure,
    /// To stay within the budget.
    Budget,
    /// The device had no memory.
    OutOfMemory,
    /// The application asked for it.
    Trim,
}

/// How a lease was served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Outcome {
    /// By a cached buffer of the very size.
    Exact,
    /// By a larger one.
    Borrowed,
    /// By one that was cached for another thread.
    Shared,
    /// By a buffer that only the same recording still held.
    WithinRecording,
    /// By a new buffer.
    Created,
}

/// What a pool did.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Event {
    /// This buffer was there when the trace began.
    Exists {
        /// Number of the buffer.
        buffer: u64,
        /// Its bytes.
        buffer_bytes: u64,
        /// Bits of its usages.
        usage: u32,
        /// Whether it was cached, and not leased or pending.
        free: bool,
    },
    /// A lease began.
    Acquire {
        /// Number of the buffer.
        buffer: u64,
        /// Bytes asked for.
        requested_bytes: u64,
        /// Bytes of the buffer.
        buffer_bytes: u64,
        /// Bits of its usages.
        usage: u32,
        /// What for.
        label: Cow<'static, str>,
        /// How it was served.
        outcome: Outcome,
    },
    /// A lease ended.
    Release {
        /// Number of the buffer.
        buffer: u64,
        /// Whether the buffer is cached; one that is not worth keeping is destroyed.
        kept: bool,
    },
    /// A lease ended; the device has yet to hand the buffer back.
    Suspend {
        /// Number of the buffer.
        buffer: u64,
    },
    /// The device handed the buffer back, or never will.
    Resume {
        /// Number of the buffer.
        buffer: u64,
        /// Whether the buffer is usable.
        usable: bool,
        /// Whether the buffer is cached; one that is unusable or not worth keeping is destroyed.
        kept: bool,
    },
    /// A cached buffer was given up.
    Evict {
        /// Number of the buffer.
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

/// Events while a trace is recorded, with the microseconds since it began.
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
