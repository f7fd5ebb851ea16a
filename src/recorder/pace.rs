//! How long the device takes for what it is given, learned while it works.

use std::collections::HashMap;

use crate::kernel::Kernel;

/// What times are learned of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Activity {
    /// A kernel; its work is counted in multiplications, about ([`Kernel::workgroup_work`]).
    Kernel(Kernel),
    /// Copies, in bytes.
    Copy,
    /// Clears, in bytes.
    Clear,
}

/// Seconds for one unit of work that has never been measured: longer than any device takes, so that the first slice is short.
const GUESS: f64 = 2e-9;

/// Part of a slice that may be filled with what has never been measured.
const UNMEASURED_SHARE: f64 = 0.25;

/// Seconds below which a measured time says little: submitting and polling take as long.
const RESOLUTION: f64 = 2e-3;

/// Seconds for a unit of work of each activity.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    seconds: HashMap<Activity, f64>,
}

impl Pace {
    pub(super) fn seconds(&self, activity: Activity, work: f64) -> f64 {
        work * self.seconds.get(&activity).copied().unwrap_or(GUESS)
    }

    /// What of `left` seconds this activity may have.
    pub(super) fn allowed(&self, activity: Activity, left: f64) -> f64 {
        match self.seconds.contains_key(&activity) {
            true => left,
            false => left * UNMEASURED_SHARE,
        }
    }

    /// Work of `parts` took so many seconds together. A longer time than expected is believed at once; of a shorter one half,
    /// so that slices at most double. What was not expected is laid to each activity by its share.
    pub(super) fn learn(&mut self, parts: &[(Activity, f64)], measured: f64) {
        let expected: f64 = parts.iter().map(|&(a, work)| self.seconds(a, work)).sum();
        if expected <= 0.0 {
            return;
        }
        let mut ratio = (measured / expected).max(0.5);
        if measured < RESOLUTION {
            ratio = ratio.min(1.0);
        }
        let mut shares: HashMap<Activity, f64> = HashMap::new();
        for &(activity, work) in parts {
            *shares.entry(activity).or_default() += self.seconds(activity, work) / expected;
        }
        for (activity, share) in shares {
            let seconds = self.seconds.entry(activity).or_insert(GUESS);
            *seconds *= 1.0 + share * (ratio - 1.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Work that fits in `seconds`, as the pace has it.
    fn fitting(pace: &Pace, activity: Activity, seconds: f64) -> f64 {
        pace.allowed(activity, seconds) / pace.seconds(activity, 1.0)
    }

    #[test]
    fn a_slice_grows_to_its_time_and_at_most_doubles_but_for_the_first() {
        let (mut pace, activity) = (Pace::default(), Activity::Copy);
        let (true_seconds, overhead, target) = (1e-11, 4e-4, 8e-3);
        let mut work = fitting(&pace, activity, target);
        assert!(work * true_seconds < target / 4.0);
        pace.learn(&[(activity, work)], overhead + work * true_seconds);
        work = fitting(&pace, activity, target);
        for _ in 0..20 {
            pace.learn(&[(activity, work)], overhead + work * true_seconds);
            let next = fitting(&pace, activity, target);
            assert!(next <= work * 2.001, "{work} {next}");
            work = next;
        }
        let time = overhead + work * true_seconds;
        assert!((time - target).abs() < 0.05 * target, "{time}");
    }

    #[test]
    fn a_slow_slice_is_believed_at_once_and_a_short_one_never_slows() {
        let (mut pace, kernel) = (Pace::default(), Activity::Kernel(Kernel::Fill));
        let work = 8e-3 / pace.seconds(kernel, 1.0);
        pace.learn(&[(kernel, work)], 80e-3);
        assert!((fitting(&pace, kernel, 8e-3) - work / 10.0).abs() < 1e-3 * work);
        let before = pace.seconds(kernel, 1.0);
        pace.learn(&[(kernel, 1.0)], 1e-3);
        assert_eq!(pace.seconds(kernel, 1.0), before);
    }
}
