//! What the recordings of a dry run come to.

use std::time::Duration;

use super::Context;
use crate::recorder::Recorder;

/// Recordings of a dry run, counted.
#[derive(Debug)]
pub(crate) struct Tally<'a> {
    /// Whose cost model tells the time.
    measured: Option<&'a Context>,
    pub num_recordings: usize,
    pub num_dispatches: usize,
    /// Time of all dispatches, where all kernels were measured.
    pub expected_time: Option<Duration>,
}

impl<'a> Tally<'a> {
    /// Of no recording yet.
    pub fn new(measured: Option<&'a Context>) -> Self {
        Self {
            measured,
            num_recordings: 0,
            num_dispatches: 0,
            expected_time: measured.map(|_| Duration::ZERO),
        }
    }

    /// Counts a recording.
    pub fn add(&mut self, recorder: &Recorder) {
        self.num_recordings += 1;
        self.num_dispatches += recorder.num_dispatches();
        let more = self
            .measured
            .and_then(|context| context.expected_time(recorder));
        let so_far = self.expected_time.zip(more);
        self.expected_time = so_far.and_then(|(sum, time)| sum.checked_add(time));
    }
}
