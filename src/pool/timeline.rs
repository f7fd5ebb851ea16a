//! The data of a trace's picture: bytes over time, and the moments at which buffers came and went.

use std::collections::HashMap;

use super::event::{Event, EvictionCause, Outcome};
use super::trace::Trace;

/// Bytes at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sample {
    pub micros: u64,
    /// Asked for by leases.
    pub requested: u64,
    /// Of leased buffers.
    pub leased: u64,
    pub pending: u64,
    pub free: u64,
}

impl Sample {
    pub fn held(&self) -> u64 {
        // Saturating: a saved trace may say anything.
        self.leased
            .saturating_add(self.pending)
            .saturating_add(self.free)
    }
}

/// A buffer came or went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub micros: u64,
    pub bytes: u64,
    pub kind: MarkKind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum MarkKind {
    /// A lease with this label needed a new buffer.
    Created(String),
    Evicted(EvictionCause),
    /// It came back and was destroyed at once.
    NotKept,
}

#[derive(Debug, Default)]
pub(super) struct Timeline {
    pub samples: Vec<Sample>,
    pub marks: Vec<Mark>,
    pub acquires: u64,
}

#[derive(Clone, Copy)]
enum Place {
    Leased { requested: u64 },
    Pending,
    Free,
}

impl Timeline {
    pub fn new(trace: &Trace) -> Self {
        let mut timeline = Self::default();
        let mut buffers: HashMap<u64, (u64, Place)> = HashMap::new();
        let mut now = Sample::default();
        // A trace without times is drawn by the order of its events. Time never steps back, whatever a saved trace says.
        let timed = trace.events.iter().any(|(micros, _)| *micros > 0);
        for (index, (micros, event)) in (0..).zip(&trace.events) {
            now.micros = now.micros.max(if timed { *micros } else { index });
            let micros = now.micros;
            // Where the event puts which buffer; `None` if it leaves the pool.
            let (buffer, to) = match event {
                Event::Exists {
                    buffer,
                    buffer_bytes,
                    free,
                    ..
                } => {
                    let requested = *buffer_bytes;
                    let place = if *free {
                        Place::Free
                    } else {
                        Place::Leased { requested }
                    };
                    (*buffer, Some((*buffer_bytes, place)))
                }
                Event::Acquire {
                    buffer,
                    requested_bytes,
                    buffer_bytes,
                    label,
                    outcome,
                    ..
                } => {
                    timeline.acquires += 1;
                    if *outcome == Outcome::Created {
                        timeline.marks.push(Mark {
                            micros,
                            bytes: *buffer_bytes,
                            kind: MarkKind::Created(label.to_string()),
                        });
                    }
                    let requested = *requested_bytes;
                    (*buffer, Some((*buffer_bytes, Place::Leased { requested })))
                }
                Event::Release { buffer, kept } | Event::Resume { buffer, kept, .. } => {
                    let bytes = buffers.get(buffer).map(|(bytes, _)| *bytes);
                    if !kept {
                        timeline.marks.push(Mark {
                            micros,
                            bytes: bytes.unwrap_or(0),
                            kind: MarkKind::NotKept,
                        });
                    }
                    let to = bytes.filter(|_| *kept).map(|bytes| (bytes, Place::Free));
                    (*buffer, to)
                }
                Event::Suspend { buffer } => {
                    let bytes = buffers.get(buffer).map(|(bytes, _)| *bytes);
                    (*buffer, bytes.map(|bytes| (bytes, Place::Pending)))
                }
                Event::Evict { buffer, cause } => {
                    let bytes = buffers.get(buffer).map_or(0, |(bytes, _)| *bytes);
                    timeline.marks.push(Mark {
                        micros,
                        bytes,
                        kind: MarkKind::Evicted(*cause),
                    });
                    (*buffer, None)
                }
                Event::Tick => continue,
            };
            if let Some((bytes, place)) = buffers.remove(&buffer) {
                now.count(bytes, place, u64::wrapping_sub);
            }
            if let Some((bytes, place)) = to {
                now.count(bytes, place, u64::wrapping_add);
                buffers.insert(buffer, (bytes, place));
            }
            timeline.samples.push(now);
        }
        timeline
    }

    pub fn created(&self) -> u64 {
        let created = |mark: &&Mark| matches!(mark.kind, MarkKind::Created(_));
        self.marks.iter().filter(created).count() as u64
    }

    pub fn peak(&self, of: impl Fn(&Sample) -> u64) -> u64 {
        self.samples.iter().map(of).max().unwrap_or(0)
    }

    /// One sample for each of `columns` equal parts of the time: the one with the most held bytes and, among those, the most
    /// leased bytes. A part without events repeats the last sample before it.
    pub fn columns(&self, columns: usize) -> Vec<Sample> {
        let end = self.samples.last().map_or(0, |sample| sample.micros).max(1);
        let mut resampled: Vec<Option<Sample>> = vec![None; columns];
        let mut last = vec![None; columns];
        for sample in &self.samples {
            let column = column(sample.micros, end, columns);
            let most = &mut resampled[column];
            let rank = |sample: &Sample| (sample.held(), sample.leased);
            if most.is_none_or(|most| rank(sample) >= rank(&most)) {
                *most = Some(*sample);
            }
            last[column] = Some(*sample);
        }
        let mut before = Sample::default();
        resampled
            .iter()
            .zip(last)
            .map(|(most, last)| {
                let shown = most.unwrap_or(before);
                before = last.unwrap_or(before);
                shown
            })
            .collect()
    }
}

/// Index of the one of `columns` equal parts of `0..=end` that contains `micros`.
pub(super) fn column(micros: u64, end: u64, columns: usize) -> usize {
    let column = u128::from(micros) * columns as u128 / (u128::from(end) + 1);
    column as usize
}

impl Sample {
    fn count(&mut self, bytes: u64, place: Place, add: fn(u64, u64) -> u64) {
        let gauge = match place {
            Place::Leased { requested } => {
                self.requested = add(self.requested, requested);
                &mut self.leased
            }
            Place::Pending => &mut self.pending,
            Place::Free => &mut self.free,
        };
        *gauge = add(*gauge, bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::super::{
        Balanced, Lease, NoPooling, Pool, PoolOptions, STORAGE_USAGE, SimulatedBuffer,
        SimulatedSource,
    };
    use super::*;

    type Leases = Vec<Lease<SimulatedBuffer>>;

    fn used(options: PoolOptions) -> crate::Result<(Timeline, Pool<SimulatedBuffer>, Leases)> {
        let pool = Pool::with_source(SimulatedSource::new(1 << 30), options);
        let before = pool.acquire("before", 10_000, STORAGE_USAGE)?;
        drop(pool.acquire("before", 20_000, STORAGE_USAGE));
        pool.start_trace();
        let mut leases = vec![before];
        for i in 1..50u64 {
            leases.push(pool.acquire("traced", i * 7777, STORAGE_USAGE)?);
            if i % 3 == 0 {
                drop(leases.swap_remove(i as usize / 3 % leases.len()));
            }
        }
        if let Ok(pending) = leases.remove(0).suspend() {
            pending.ready();
        }
        leases.truncate(5);
        Ok((Timeline::new(&pool.take_trace()), pool, leases))
    }

    #[test]
    fn a_timeline_ends_where_the_pool_is_and_peaks_where_it_did() -> crate::Result<()> {
        for options in [
            PoolOptions::default(),
            PoolOptions::default().with_policy(NoPooling),
            PoolOptions::default().with_policy(Balanced {
                floor_bytes: 0,
                ..Balanced::default()
            }),
        ] {
            let (timeline, pool, _leases) = used(options)?;
            let stats = pool.stats();
            let last = timeline.samples.last().copied().unwrap_or_default();
            assert_eq!(last.leased, stats.leased_bytes.current);
            assert_eq!(last.free, stats.free_bytes.current);
            // One lease of before the trace asked for less than its buffer has; the trace cannot know.
            let requested = stats.requested_bytes.current;
            assert!((requested..=requested + 512).contains(&last.requested));
            assert_eq!(timeline.peak(Sample::held), stats.held_bytes.peak);
            let columns = timeline.columns(40);
            let peak = columns.iter().map(Sample::held).max();
            assert_eq!(peak, Some(stats.held_bytes.peak), "resampling keeps peaks");
        }
        Ok(())
    }
}
