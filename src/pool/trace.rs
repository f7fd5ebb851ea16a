//! Traces: what a pool did, event by event. A trace can be saved, replayed under another policy, and seen as bytes
//! [over time](Trace::timeline).
//!
//! A saved trace is text with one line per event: microseconds since the trace began, the kind of event, and its figures.
//!
//! ```text
//! pool trace 1
//! 12 acquire 1 4000 4096 140 created scores
//! 40 release 1 kept
//! 55 acquire 1 3900 4096 140 borrowed weights
//! 60 tick
//! 71 evict 1 retention
//! ```
//!
//! The figures of `acquire` are the buffer's serial number, bytes asked for, bytes of the buffer, bits of the usages, how it
//! was served, and the label.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

use super::event::{Event, EvictionCause, Outcome};
use super::lease::{Lease, Pending};
use super::simulated::{SimulatedBuffer, SimulatedSource};
use super::{Pool, PoolOptions, PoolReport};
use crate::error::PoolError;
use crate::wgpu::BufferUsages;

/// The events of a pool with their times, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Trace {
    /// Each event with the microseconds since the trace began.
    pub(super) events: Vec<(u64, Event)>,
}

/// A lease of a replay, wherever it is.
enum Replayed {
    Leased(Lease<SimulatedBuffer>),
    Pending(Pending<SimulatedBuffer>),
}

impl Trace {
    /// Replays the same requests on a simulated pool with `options` and returns its figures at the end. No memory is
    /// allocated. `max_buffer_bytes` is the size of the simulated device's largest buffer.
    ///
    /// # Errors
    /// Those of [`Pool::acquire`], if the budget in `options` does not suffice.
    pub fn replay(
        &self,
        options: PoolOptions,
        max_buffer_bytes: u64,
    ) -> Result<PoolReport, PoolError> {
        let pool = Pool::from_source(SimulatedSource::new(max_buffer_bytes), options);
        let mut buffers: HashMap<u64, Replayed> = HashMap::new();
        // Cached before the trace: kept apart until all that existed does.
        let mut cached = Vec::new();
        for (_, event) in &self.events {
            if !matches!(event, Event::Exists { .. }) {
                cached.clear();
            }
            match event {
                Event::Exists {
                    buffer,
                    buffer_bytes,
                    usage,
                    free,
                } => {
                    let usage = BufferUsages::from_bits_retain(*usage);
                    let lease = pool.acquire("before the trace", *buffer_bytes, usage)?;
                    if *free {
                        cached.push(lease);
                    } else {
                        buffers.insert(*buffer, Replayed::Leased(lease));
                    }
                }
                Event::Acquire {
                    buffer,
                    requested_bytes,
                    usage,
                    ..
                } => {
                    let usage = BufferUsages::from_bits_retain(*usage);
                    if let Some(Replayed::Leased(lease)) = buffers.get_mut(buffer) {
                        // Within a recording: the same buffer where it fits, also here.
                        let lease = std::slice::from_mut(lease);
                        let reused = pool.reuse(lease, "replayed", *requested_bytes, usage)?;
                        if reused.is_some() {
                            continue;
                        }
                    }
                    let lease = pool.acquire("replayed", *requested_bytes, usage)?;
                    buffers.insert(*buffer, Replayed::Leased(lease));
                }
                Event::Release { buffer, .. } => drop(buffers.remove(buffer)),
                Event::Suspend { buffer } => {
                    if let Some(Replayed::Leased(lease)) = buffers.remove(buffer) {
                        // A replay holds one handle of each lease.
                        let pending = lease.suspend().map(Replayed::Pending);
                        buffers.insert(*buffer, pending.unwrap_or_else(Replayed::Leased));
                    }
                }
                Event::Resume { buffer, usable, .. } => {
                    if let Some(Replayed::Pending(pending)) = buffers.remove(buffer)
                        && *usable
                    {
                        pending.ready();
                    }
                }
                Event::Tick => pool.maintain(),
                Event::Evict { .. } => {}
            }
        }
        Ok(pool.report())
    }
}

const HEADER: &str = "pool trace 1";

const OUTCOMES: [(Outcome, &str); 5] = [
    (Outcome::Exact, "exact"),
    (Outcome::Borrowed, "borrowed"),
    (Outcome::Shared, "shared"),
    (Outcome::WithinRecording, "within-recording"),
    (Outcome::Created, "created"),
];

const CAUSES: [(EvictionCause, &str); 7] = [
    (EvictionCause::Retention, "retention"),
    (EvictionCause::Cap, "cap"),
    (EvictionCause::Idle, "idle"),
    (EvictionCause::Pressure, "pressure"),
    (EvictionCause::Budget, "budget"),
    (EvictionCause::OutOfMemory, "out-of-memory"),
    (EvictionCause::Trim, "trim"),
];

const USABLE: [(bool, &str); 2] = [(true, "usable"), (false, "unusable")];

const KEPT: [(bool, &str); 2] = [(true, "kept"), (false, "destroyed")];

fn name_of<T: PartialEq>(table: &[(T, &'static str)], value: &T) -> &'static str {
    let found = table.iter().find(|(known, _)| known == value);
    found.map_or("unknown", |(_, name)| name)
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exists {
                buffer,
                buffer_bytes,
                usage,
                free,
            } => {
                let place = if *free { "free" } else { "leased" };
                write!(f, "exists {buffer} {buffer_bytes} {usage} {place}")
            }
            Self::Acquire {
                buffer,
                requested_bytes,
                buffer_bytes,
                usage,
                label,
                outcome,
            } => {
                let outcome = name_of(&OUTCOMES, outcome);
                // A label is the rest of the line.
                let label = label.replace(['\n', '\r'], " ");
                write!(
                    f,
                    "acquire {buffer} {requested_bytes} {buffer_bytes} {usage} {outcome} {label}"
                )
            }
            Self::Release { buffer, kept } => {
                write!(f, "release {buffer} {}", name_of(&KEPT, kept))
            }
            Self::Suspend { buffer } => write!(f, "suspend {buffer}"),
            Self::Resume {
                buffer,
                usable,
                kept,
            } => {
                let (usable, kept) = (name_of(&USABLE, usable), name_of(&KEPT, kept));
                write!(f, "resume {buffer} {usable} {kept}")
            }
            Self::Evict { buffer, cause } => {
                write!(f, "evict {buffer} {}", name_of(&CAUSES, cause))
            }
            Self::Tick => write!(f, "tick"),
        }
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{HEADER}")?;
        for (micros, event) in &self.events {
            writeln!(f, "{micros} {event}")?;
        }
        Ok(())
    }
}

impl FromStr for Trace {
    type Err = PoolError;

    fn from_str(text: &str) -> Result<Self, PoolError> {
        let mut lines = text.lines().enumerate();
        if lines.next().map(|(_, line)| line) != Some(HEADER) {
            return Err(PoolError::InvalidTrace {
                line: 1,
                need: "the line 'pool trace 1'",
            });
        }
        let mut events = Vec::new();
        for (index, line) in lines.filter(|(_, line)| !line.is_empty()) {
            let event = parse(line).map_err(|need| PoolError::InvalidTrace {
                line: index as u64 + 1,
                need,
            })?;
            events.push(event);
        }
        Ok(Self { events })
    }
}

/// One line; an `Err` says what it should have been.
fn parse(line: &str) -> Result<(u64, Event), &'static str> {
    let mut words = line.splitn(8, ' ');
    let mut word = || words.next().ok_or("more words");
    fn number<T: FromStr>(word: &str) -> Result<T, &'static str> {
        word.parse().map_err(|_| "a number")
    }
    fn named<T: Copy>(table: &[(T, &'static str)], word: &str) -> Result<T, &'static str> {
        let found = table.iter().find(|(_, name)| *name == word);
        found
            .map(|(value, _)| *value)
            .ok_or("a known outcome or cause")
    }
    let micros = number(word()?)?;
    let event = match word()? {
        "exists" => Event::Exists {
            buffer: number(word()?)?,
            buffer_bytes: number(word()?)?,
            usage: number(word()?)?,
            free: named(&[(true, "free"), (false, "leased")], word()?)?,
        },
        "acquire" => Event::Acquire {
            buffer: number(word()?)?,
            requested_bytes: number(word()?)?,
            buffer_bytes: number(word()?)?,
            usage: number(word()?)?,
            outcome: named(&OUTCOMES, word()?)?,
            label: word()?.to_owned().into(),
        },
        "release" => Event::Release {
            buffer: number(word()?)?,
            kept: named(&KEPT, word()?)?,
        },
        "suspend" => Event::Suspend {
            buffer: number(word()?)?,
        },
        "resume" => Event::Resume {
            buffer: number(word()?)?,
            usable: named(&USABLE, word()?)?,
            kept: named(&KEPT, word()?)?,
        },
        "evict" => Event::Evict {
            buffer: number(word()?)?,
            cause: named(&CAUSES, word()?)?,
        },
        "tick" => Event::Tick,
        _ => return Err("exists, acquire, release, suspend, resume, evict or tick"),
    };
    Ok((micros, event))
}
