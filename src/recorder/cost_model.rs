//! The cost model: how long the device takes for kernels, copies and clears, learned from slices.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use crate::kernels::Kernel;

/// A kind of work whose time is learned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Activity {
    /// A kernel. The unit of work is about one multiplication ([`Kernel::workgroup_work`]).
    Kernel(Kernel),
    /// Copies. The unit is one byte.
    Copy,
    /// Clears. The unit is one byte.
    Clear,
}

/// Assumed seconds per unit of work that was never measured. Longer than on any device, so that the first slice is short.
const GUESS: f64 = 2e-9;

/// The part of a slice's time that may go to activities that were never measured.
const UNMEASURED_SHARE: f64 = 0.25;

/// Seconds below which a measured time says little, because submitting and polling take as long.
const RESOLUTION: f64 = 2e-3;

/// Seconds per unit of work that are accepted from a file: from far below the fastest device to a million times [`GUESS`].
const CREDIBLE: std::ops::RangeInclusive<f64> = 1e-18..=2e-3;

/// Format number of [`CostModelFile`].
const FORMAT: u32 = 2;

/// The file that a process leaves for later ones.
#[derive(Serialize, Deserialize)]
struct CostModelFile {
    format: u32,
    /// Seconds per unit of work of each kernel, by its [key](Kernel::key).
    seconds: BTreeMap<String, f64>,
}

/// The measurements of one activity.
#[derive(Clone, Copy, Debug, Default)]
struct Measured {
    /// Seconds per unit of work in the last slice. The next slice is sized by it.
    seconds: f64,
    /// Sums of seconds and of work over all slices but the first, in which some drivers compile.
    sum: (f64, f64),
}

impl Measured {
    /// Mean seconds per unit of work. Times of long work are predicted by it.
    fn mean(&self) -> f64 {
        match self.sum {
            (seconds, work) if work > 0.0 => seconds / work,
            _ => self.seconds,
        }
    }
}

/// Seconds per unit of work of each activity.
#[derive(Debug, Default)]
pub(crate) struct CostModel {
    measured: HashMap<Activity, Measured>,
    /// Seconds per unit of work of kernels that an earlier process has measured, by key. They replace [`GUESS`]; otherwise such
    /// kernels count as not measured yet.
    remembered: BTreeMap<String, f64>,
}

impl CostModel {
    /// A cost model that starts from what [`to_json`](Self::to_json) wrote in another process. Entries that cannot be read
    /// are ignored.
    pub fn from_json(json: &[u8]) -> Self {
        let file = serde_json::from_slice::<CostModelFile>(json).ok();
        let file = file.filter(|file| file.format == FORMAT);
        let remembered = file.map(|file| file.seconds).unwrap_or_default();
        Self {
            measured: HashMap::new(),
            remembered: remembered
                .into_iter()
                .filter(|(_, seconds)| CREDIBLE.contains(seconds))
                .collect(),
        }
    }

    /// Everything known about kernels, as JSON.
    pub fn to_json(&self) -> Vec<u8> {
        let measured = self.measured.iter().filter_map(|(activity, measured)| {
            let Activity::Kernel(kernel) = activity else {
                return None;
            };
            Some((kernel.key(), measured.mean()))
        });
        let mut known = self.remembered.clone();
        known.extend(measured);
        let file = CostModelFile {
            format: FORMAT,
            seconds: known,
        };
        // A map of names to numbers always is valid JSON.
        serde_json::to_vec_pretty(&file).unwrap_or_default()
    }

    /// Seconds for the given work of each kernel, or `None` if one of the kernels is not known.
    pub fn expected(&self, work: &[(Kernel, f64)]) -> Option<f64> {
        let seconds = |&(kernel, work): &(Kernel, f64)| {
            let measured = self.measured.get(&Activity::Kernel(kernel));
            let known = measured
                .map(Measured::mean)
                .or_else(|| self.remembered.get(&kernel.key()).copied());
            known.map(|seconds| work * seconds)
        };
        work.iter().map(seconds).sum()
    }

    pub(super) fn seconds(&self, activity: Activity, work: f64) -> f64 {
        let measured = self.measured.get(&activity);
        work * measured.map_or_else(|| self.before(activity), |measured| measured.seconds)
    }

    /// Seconds per unit of an activity that has not been measured in this process.
    fn before(&self, activity: Activity) -> f64 {
        let remembered = match activity {
            Activity::Kernel(kernel) if !self.remembered.is_empty() => {
                self.remembered.get(&kernel.key())
            }
            _ => None,
        };
        remembered.copied().unwrap_or(GUESS)
    }

    /// How many of the `left` seconds of a slice may go to this activity.
    pub(super) fn allowed(&self, activity: Activity, left: f64) -> f64 {
        match self.measured.contains_key(&activity) {
            true => left,
            false => left * UNMEASURED_SHARE,
        }
    }

    /// Learns that the work of `parts` took `measured` seconds together. A time longer than expected is believed at once, a shorter
    /// one at most down to half, so that slices at most double. The difference is attributed to the activities by their
    /// shares of the expected time.
    pub(super) fn learn(&mut self, parts: &[(Activity, f64)], measured: f64) {
        let expected: f64 = parts.iter().map(|&(a, work)| self.seconds(a, work)).sum();
        if expected <= 0.0 {
            return;
        }
        let mut ratio = (measured / expected).max(0.5);
        if measured < RESOLUTION {
            ratio = ratio.min(1.0);
        }
        let mut shares: HashMap<Activity, (f64, f64)> = HashMap::new();
        for &(activity, work) in parts {
            let (share, sum) = shares.entry(activity).or_default();
            *share += self.seconds(activity, work) / expected;
            *sum += work;
        }
        for (activity, (share, work)) in shares {
            let change = 1.0 + share * (ratio - 1.0);
            match self.measured.get_mut(&activity) {
                Some(before) => {
                    before.seconds *= change;
                    before.sum.0 += share * measured;
                    before.sum.1 += work;
                }
                None => {
                    let first = Measured {
                        seconds: self.before(activity) * change,
                        sum: (0.0, 0.0),
                    };
                    self.measured.insert(activity, first);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::adamw::AdamW;
    use crate::kernels::fill::Fill;

    /// Work that fits in `seconds` by the cost model.
    fn fitting(cost_model: &CostModel, activity: Activity, seconds: f64) -> f64 {
        cost_model.allowed(activity, seconds) / cost_model.seconds(activity, 1.0)
    }

    #[test]
    fn a_slice_grows_to_its_time_and_at_most_doubles_but_for_the_first() {
        let (mut cost_model, activity) = (CostModel::default(), Activity::Copy);
        let (true_seconds, overhead, target) = (1e-11, 4e-4, 8e-3);
        let mut work = fitting(&cost_model, activity, target);
        assert!(work * true_seconds < target / 4.0);
        cost_model.learn(&[(activity, work)], overhead + work * true_seconds);
        work = fitting(&cost_model, activity, target);
        for _ in 0..20 {
            cost_model.learn(&[(activity, work)], overhead + work * true_seconds);
            let next = fitting(&cost_model, activity, target);
            assert!(next <= work * 2.001, "{work} {next}");
            work = next;
        }
        let time = overhead + work * true_seconds;
        assert!((time - target).abs() < 0.05 * target, "{time}");
    }

    #[test]
    fn a_slow_slice_is_believed_at_once_and_a_short_one_never_slows() {
        let (mut cost_model, kernel) = (CostModel::default(), Activity::Kernel(Kernel::Fill(Fill)));
        let work = 8e-3 / cost_model.seconds(kernel, 1.0);
        cost_model.learn(&[(kernel, work)], 80e-3);
        assert!((fitting(&cost_model, kernel, 8e-3) - work / 10.0).abs() < 1e-3 * work);
        let before = cost_model.seconds(kernel, 1.0);
        cost_model.learn(&[(kernel, 1.0)], 1e-3);
        assert_eq!(cost_model.seconds(kernel, 1.0), before);
    }

    #[test]
    fn what_is_remembered_is_a_better_guess_and_nothing_else_is_expected() {
        let (fill, known) = (Kernel::Fill(Fill), Activity::Kernel(Kernel::Fill(Fill)));
        let mut cost_model = CostModel::default();
        assert_eq!(cost_model.expected(&[(fill, 1.0)]), None);
        cost_model.learn(&[(known, 1e6)], 2.0);
        let near = |given: f64, expected: f64| assert!((given - expected).abs() < 1e-9 * expected);
        near(cost_model.expected(&[(fill, 3e6)]).unwrap(), 6.0);
        assert_eq!(
            cost_model.expected(&[(fill, 1.0), (Kernel::AdamW(AdamW), 1.0)]),
            None
        );
        let mut later = CostModel::from_json(&cost_model.to_json());
        near(later.expected(&[(fill, 3e6)]).unwrap(), 6.0);
        // The first slice stays short.
        near(fitting(&later, known, 8.0), 1e6);
        assert_eq!(later.to_json(), cost_model.to_json());
        later.learn(&[(known, 1e6)], 3.0);
        near(later.expected(&[(fill, 1e6)]).unwrap(), 3.0);
        // The mean without the first slice.
        later.learn(&[(known, 1e6)], 1.0);
        later.learn(&[(known, 3e6)], 5.0);
        near(later.expected(&[(fill, 2e6)]).unwrap(), 3.0);
        assert_ne!(later.to_json(), cost_model.to_json());
    }

    #[test]
    fn files_that_make_no_sense_count_as_nothing() {
        let entry = |seconds: &str| {
            let seconds = format!("{{\"fill\": {seconds}}}");
            format!("{{\"format\": {FORMAT}, \"seconds\": {seconds}}}").into_bytes()
        };
        let expected =
            |json: &[u8]| CostModel::from_json(json).expected(&[(Kernel::Fill(Fill), 1.0)]);
        assert_eq!(expected(&entry("1e-9")), Some(1e-9));
        for seconds in ["0", "-1e-9", "1e9", "1e-300", "null", "[]", "\"1\""] {
            assert_eq!(expected(&entry(seconds)), None, "{seconds}");
        }
        let other_format = "{\"format\": 1, \"seconds\": {\"fill\": 1e-9}}";
        for text in [
            "",
            "{",
            "[]",
            "null",
            "\u{0}",
            "{\"fill\": 1e-9}",
            other_format,
        ] {
            assert_eq!(expected(text.as_bytes()), None);
        }
        let whole = entry("1e-9");
        for len in 0..whole.len() {
            assert_eq!(expected(&whole[..len]), None);
        }
    }
}
