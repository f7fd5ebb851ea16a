//! The data of a trace's picture: bytes over time, and the moments at which buffers came and went.

use std::collections::HashMap;

use super::event::{Event, EvictionCause, Outcome};
use super::trace::Trace;

/// Bytes at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct TimelineSample {
    /// Microseconds since the trace began.
    pub micros: u64,
    /// Asked for by leases.
    pub requested_bytes: u64,
    /// Of leased buffers.
    pub leased_bytes: u64,
    /// Of buffers that wait for the device.
    pub pending_bytes: u64,
    /// Of cached buffers.
    pub free_bytes: u64,
}

impl TimelineSample {
    /// Of all buffers: leased, pending and cached.
    pub fn held_bytes(&self) -> u64 {
        // Saturating: a saved trace may say anything.
        self.leased_bytes
            .saturating_add(self.pending_bytes)
            .saturating_add(self.free_bytes)
    }
}

/// A buffer came or went.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct TimelineMark {
    /// Microseconds since the trace began.
    pub micros: u64,
    /// Its bytes; 0 where the trace does not tell them.
    pub buffer_bytes: u64,
    /// What happened.
    pub kind: MarkKind,
}

/// Why a buffer came or went.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum MarkKind {
    /// A lease with this label needed a new buffer.
    Created(String),
    /// It was cached, and given up.
    Evicted(EvictionCause),
    /// It came back and was destroyed at once.
    NotKept,
}

/// A [`Trace`] as a picture shows it: bytes over time, and when buffers came and went. The example `pool_report` draws one.
///
/// ```
/// # use dilated_attention::pool::{MarkKind, Pool, PoolOptions, STORAGE_USAGE};
/// # let (device, _) = dilated_attention::wgpu::Device::noop(&Default::default());
/// # let pool = Pool::new(&device, PoolOptions::default());
/// pool.start_trace();
/// drop(pool.acquire("scores", 1000, STORAGE_USAGE)?);
/// let timeline = pool.take_trace().timeline();
/// let [taken, given_back] = timeline.samples[..] else { panic!("two events") };
/// assert_eq!((taken.requested_bytes, taken.leased_bytes, taken.free_bytes), (1000, 1024, 0));
/// assert_eq!((given_back.leased_bytes, given_back.free_bytes), (0, 1024));
/// assert_eq!(timeline.marks[0].kind, MarkKind::Created("scores".to_owned()));
/// # Ok::<(), dilated_attention::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Timeline {
    /// Bytes after each event that moved a buffer, in order of time.
    pub samples: Vec<TimelineSample>,
    /// Buffers that came and went, in order of time.
    pub marks: Vec<TimelineMark>,
    /// Leases that began.
    pub acquires: usize,
}

#[derive(Clone, Copy)]
enum Place {
    Leased { requested: u64 },
    Pending,
    Free,
}

impl Trace {
    /// Bytes over time, and when buffers came and went. A trace whose times are all 0 has the numbers of its events as times.
    pub fn timeline(&self) -> Timeline {
        let mut timeline = Timeline::default();
        let mut buffers: HashMap<u64, (u64, Place)> = HashMap::new();
        let mut now = TimelineSample::default();
        // Time never steps back, whatever a saved trace says.
        let timed = self.events.iter().any(|(micros, _)| *micros > 0);
        for (index, (micros, event)) in (0..).zip(&self.events) {
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
                        timeline.marks.push(TimelineMark {
                            micros,
                            buffer_bytes: *buffer_bytes,
                            kind: MarkKind::Created(label.to_string()),
                        });
                    }
                    let requested = *requested_bytes;
                    (*buffer, Some((*buffer_bytes, Place::Leased { requested })))
                }
                Event::Release { buffer, kept } | Event::Resume { buffer, kept, .. } => {
                    let bytes = buffers.get(buffer).map(|(bytes, _)| *bytes);
                    if !kept {
                        timeline.marks.push(TimelineMark {
                            micros,
                            buffer_bytes: bytes.unwrap_or(0),
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
                    timeline.marks.push(TimelineMark {
                        micros,
                        buffer_bytes: bytes,
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
}

impl Timeline {
    /// Microseconds from the begin of the trace to the last event, at least 1.
    pub fn end_micros(&self) -> u64 {
        let last = self.samples.last().map_or(0, |sample| sample.micros);
        last.max(1)
    }

    /// The samples of `columns` equal parts of the time, each by the one in which most is held, of those the one in which most
    /// is leased; a part without events has the last sample of before. So a picture of few columns shows every peak.
    pub fn columns(&self, columns: usize) -> impl Iterator<Item = TimelineSample> {
        let mut samples = self.samples.iter().peekable();
        let mut before = TimelineSample::default();
        let rank = |sample: &TimelineSample| (sample.held_bytes(), sample.leased_bytes);
        (0..columns).map(move |column| {
            let mut most: Option<TimelineSample> = None;
            let inside = |sample: &&TimelineSample| self.column(sample.micros, columns) <= column;
            while let Some(sample) = samples.next_if(inside) {
                if most.is_none_or(|most| rank(sample) >= rank(&most)) {
                    most = Some(*sample);
                }
                before = *sample;
            }
            most.unwrap_or(before)
        })
    }

    /// Which of `columns` equal parts of the time holds `micros`, from 0 on.
    pub fn column(&self, micros: u64, columns: usize) -> usize {
        let column = u128::from(micros) * columns as u128 / (u128::from(self.end_micros()) + 1);
        usize::try_from(column).unwrap_or(usize::MAX)
    }
}

impl TimelineSample {
    fn count(&mut self, bytes: u64, place: Place, add: fn(u64, u64) -> u64) {
        let gauge = match place {
            Place::Leased { requested } => {
                self.requested_bytes = add(self.requested_bytes, requested);
                &mut self.leased_bytes
            }
            Place::Pending => &mut self.pending_bytes,
            Place::Free => &mut self.free_bytes,
        };
        *gauge = add(*gauge, bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::super::simulated::{SimulatedBuffer, SimulatedSource};
    use super::super::{Balanced, Lease, NoPooling, Pool, PoolOptions, PoolStats, STORAGE_USAGE};
    use super::*;

    type Leases = Vec<Lease<SimulatedBuffer>>;

    /// A timeline, its pool at the end, what is still leased, and the figures when the trace began.
    fn used(
        options: PoolOptions,
    ) -> crate::Result<(Timeline, Pool<SimulatedBuffer>, Leases, PoolStats)> {
        let pool = Pool::from_source(SimulatedSource::new(1 << 30), options);
        let before = pool.acquire("before", 10_000, STORAGE_USAGE)?;
        drop(pool.acquire("before", 20_000, STORAGE_USAGE));
        let stats = pool.stats();
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
        Ok((pool.take_trace().timeline(), pool, leases, stats))
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
            let (timeline, pool, _leases, before) = used(options)?;
            let stats = pool.stats();
            let last = timeline.samples.last().copied().unwrap_or_default();
            assert_eq!(last.leased_bytes, stats.leased_bytes.current);
            assert_eq!(last.free_bytes, stats.free_bytes.current);
            // One lease of before the trace asked for less than its buffer has; the trace cannot know.
            let requested = stats.requested_bytes.current;
            assert!((requested..=requested + 512).contains(&last.requested_bytes));
            let peak = |samples: &[TimelineSample]| {
                let held = samples.iter().map(TimelineSample::held_bytes);
                held.max()
            };
            let held = Some(stats.held_bytes.peak);
            assert_eq!(peak(&timeline.samples), held);
            let columns: Vec<_> = timeline.columns(40).collect();
            assert_eq!(peak(&columns), held, "resampling keeps peaks");
            assert_eq!(timeline.acquires as u64, stats.acquires - before.acquires);
            let (came, went): (Vec<_>, Vec<_>) = timeline
                .marks
                .iter()
                .partition(|mark| matches!(mark.kind, MarkKind::Created(_)));
            assert_eq!(came.len() as u64, stats.creates - before.creates);
            assert_eq!(went.len() as u64, stats.destroys - before.destroys);
        }
        Ok(())
    }

    #[test]
    fn marks_say_which_buffer_came_or_went_and_why() -> crate::Result<()> {
        let trace: Trace = "pool trace 1\n\
             5 acquire 1 8 256 140 created scores\n\
             6 release 1 kept\n\
             7 acquire 1 9 256 140 exact scores\n\
             8 suspend 1\n\
             9 resume 1 usable kept\n\
             10 evict 1 idle\n\
             11 acquire 2 8 512 140 created weights\n\
             12 release 2 destroyed\n"
            .parse()?;
        let timeline = trace.timeline();
        let marks: Vec<_> = timeline
            .marks
            .into_iter()
            .map(|mark| (mark.micros, mark.buffer_bytes, mark.kind))
            .collect();
        let expected = [
            (5, 256, MarkKind::Created("scores".to_owned())),
            (10, 256, MarkKind::Evicted(EvictionCause::Idle)),
            (11, 512, MarkKind::Created("weights".to_owned())),
            (12, 512, MarkKind::NotKept),
        ];
        assert_eq!(marks, expected);
        let bytes = timeline.samples.iter().map(|sample| {
            [
                sample.requested_bytes,
                sample.leased_bytes,
                sample.pending_bytes,
                sample.free_bytes,
            ]
        });
        let expected = [
            [8, 256, 0, 0],
            [0, 0, 0, 256],
            [9, 256, 0, 0],
            [0, 0, 256, 0],
            [0, 0, 0, 256],
            [0, 0, 0, 0],
            [8, 512, 0, 0],
            [0, 0, 0, 0],
        ];
        assert!(bytes.eq(expected));
        assert_eq!(timeline.acquires, 3);
        Ok(())
    }

    #[test]
    fn any_trace_that_parses_has_a_timeline() -> crate::Result<()> {
        let nothing = Trace::default().timeline();
        assert_eq!((nothing.end_micros(), nothing.columns(0).count()), (1, 0));
        assert!(nothing.columns(3).eq([TimelineSample::default(); 3]));

        let mut text =
            "pool trace 1\n900 acquire 1 8 256 140 created a\n10 release 1 kept\n".to_owned();
        for buffer in 2..2000u64 {
            let huge = u64::MAX - buffer;
            text += &format!("{buffer} acquire {buffer} 8 {huge} 140 created b\n");
            text += &format!("{buffer} evict {buffer} retention\n");
            text += &format!("{buffer} release {buffer} destroyed\n");
        }
        text += &format!("{} release 3 kept\n", u64::MAX);
        let timeline = text.parse::<Trace>()?.timeline();
        assert!(timeline.samples.is_sorted_by_key(|sample| sample.micros));
        assert!(timeline.marks.is_sorted_by_key(|mark| mark.micros));
        assert_eq!(timeline.end_micros(), u64::MAX);
        assert_eq!(timeline.columns(0).count(), 0);
        // However many there may be, nothing is made before it is asked for.
        let first = timeline.columns(usize::MAX).next();
        assert_eq!(first.map(|sample| sample.held_bytes()), Some(0));
        let columns: Vec<_> = timeline.columns(7).collect();
        assert_eq!(columns.len(), 7);
        // What is held most at, all in the first column, and what is left in all others.
        assert_eq!(columns[0].held_bytes(), u64::MAX);
        assert!(columns[1..].iter().all(|sample| sample.held_bytes() == 256));
        assert_eq!(timeline.column(u64::MAX, usize::MAX), usize::MAX - 1);
        Ok(())
    }

    #[test]
    fn a_trace_without_times_goes_by_its_events() -> crate::Result<()> {
        let text = "pool trace 1\n0 acquire 1 8 256 140 created a\n0 tick\n0 release 1 kept\n";
        let timeline = text.parse::<Trace>()?.timeline();
        let times: Vec<u64> = timeline
            .samples
            .iter()
            .map(|sample| sample.micros)
            .collect();
        assert_eq!(times, [0, 2]);
        Ok(())
    }
}
