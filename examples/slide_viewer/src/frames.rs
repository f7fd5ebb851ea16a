//! How long frames take.

use std::time::{Duration, Instant};

/// Frames that the window shows figures of.
const SHOWN: usize = 200;

/// The frames of one run.
#[derive(Debug, Default)]
pub struct FrameTimes {
    last: Option<Instant>,
    /// Between the beginnings of successive frames.
    intervals: Vec<Duration>,
    /// Inside of each frame's user interface: the thread's own work.
    inside: Vec<Duration>,
}

/// Figures of many times.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    pub count: usize,
    pub median: Duration,
    pub percentile_95: Duration,
    pub longest: Duration,
}

impl Figures {
    fn of(times: &[Duration]) -> Self {
        let mut sorted = times.to_vec();
        sorted.sort();
        let at = |percent: usize| {
            let place = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
            sorted.get(place).copied().unwrap_or_default()
        };
        Self {
            count: sorted.len(),
            median: at(50),
            percentile_95: at(95),
            longest: at(100),
        }
    }
}

impl FrameTimes {
    /// A frame begins.
    pub fn begin(&mut self, now: Instant) {
        if let Some(last) = self.last.replace(now) {
            self.intervals.push(now - last);
        }
    }

    /// The user interface of the frame is made.
    pub fn end(&mut self, begun: Instant) {
        self.inside.push(begun.elapsed());
    }

    /// Intervals of the last frames.
    pub fn intervals(&self) -> Figures {
        Figures::of(tail(&self.intervals))
    }

    /// Times inside of the last frames.
    pub fn inside(&self) -> Figures {
        Figures::of(tail(&self.inside))
    }

    /// Intervals of all frames of the run.
    pub fn all_intervals(&self) -> Figures {
        Figures::of(&self.intervals)
    }
}

fn tail(times: &[Duration]) -> &[Duration] {
    &times[times.len().saturating_sub(SHOWN)..]
}
