//! How long work will take, from what sliced submissions have measured, in this process and in those before.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Context, compiled};
use crate::kernels::remembered::Tuner;
use crate::recorder::{Pace, Recorder};

/// More is not read: no file of this many kernels is as large.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// The file for an adapter, its driver and their versions, beside that of the tuner.
pub(super) fn file(tuner: &Tuner) -> Option<PathBuf> {
    let name = format!(
        "pace-{:016x}.json",
        compiled::checksum(tuner.adapter().as_bytes())
    );
    Some(tuner.file()?.with_file_name(name))
}

/// What a process before has saved.
pub(super) fn load(file: Option<&Path>) -> Pace {
    let saved = file.and_then(|file| compiled::read_file(file, MAX_FILE_BYTES));
    saved.map_or_else(Pace::default, |json| Pace::from_json(&json))
}

impl Context {
    /// How long the dispatches of `recorder` will take, at the pace that sliced submissions of this context have measured, or
    /// of a process before that [saved](Self::save_pace) it. `None` where one of their kernels has never been measured: nothing
    /// is guessed. A recording of a [planner](Self::planner) for the same device will do.
    ///
    /// The pace is that of the whole machine, with whatever else it did. What is not cut into slices teaches nothing. What passes
    /// between slices comes on top: the application's own work, threads that wait for their turn.
    pub fn expected_time(&self, recorder: &Recorder) -> Option<Duration> {
        let seconds = self.pace().expected(&recorder.work())?;
        Some(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
    }

    /// Keeps the pace that sliced submissions have measured for later processes on this adapter and driver, where there is a
    /// cache folder: they know the [time](Self::expected_time) of work before it runs, and their first slices are larger than
    /// guesses allow. Whether a file was written. It may be deleted at any time, and one that is damaged counts as none.
    pub fn save_pace(&self) -> bool {
        let Some(file) = file(self.tuner()) else {
            return false;
        };
        let json = self.pace().to_json();
        compiled::replace(&file, &json)
    }
}
