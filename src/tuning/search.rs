//! Which candidates are measured, in which order, and which of them wins. This module uses neither a device nor a clock.
//!
//! A compilation cannot be cancelled, so a search keeps to its budget by the order in which it tries kernels:
//! 1. The kernel that suits the device is measured first, because it would be used anyway.
//! 2. The others follow, those that compile fastest first. A kernel is not tried if its expected compile time is too long in any
//!    case, or longer than the time that is left.
//! 3. If a compilation takes longer than the whole budget, the search ends, because expected compile times do not hold on this machine.

use std::time::Duration;

use crate::error::{Error, Result};
use crate::kernels::Candidate;

/// Times that a probe has measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Time of the first run, with compilation.
    pub first: Duration,
    /// Median time of the later runs.
    pub run: Duration,
    /// Time of the whole probe.
    pub total: Duration,
}

/// Result of a search for one candidate.
#[derive(Debug)]
pub enum Outcome {
    /// It was measured.
    Measured(Timing),
    /// It failed to run.
    Failed(Error),
    /// Not tried: it is known to take too long to compile.
    Dear,
    /// Not tried: too little time was left.
    NoTime,
}

/// Another kernel wins only if its time is below this fraction of the suggested kernel's time, because medians of a few runs differ
/// by as much by chance.
const WORTH_A_CHANGE: f64 = 0.95;

/// Measures `suggested` and then the other `candidates`, as the module documentation says. Returns the outcome of each, that of
/// `suggested` first.
pub fn search<V: Copy + PartialEq>(
    suggested: V,
    candidates: &[Candidate<V>],
    budget: Duration,
    mut measure: impl FnMut(V) -> Result<Timing>,
) -> Vec<(V, Outcome)> {
    let mut left = budget;
    let mut try_one = |variant, left: &mut Duration| match measure(variant) {
        Ok(timing) => {
            let over = timing.first > budget;
            *left = if over {
                Duration::ZERO
            } else {
                left.saturating_sub(timing.total)
            };
            Outcome::Measured(timing)
        }
        Err(error) => Outcome::Failed(error),
    };
    let mut outcomes = vec![(suggested, try_one(suggested, &mut left))];
    let mut others: Vec<_> = candidates
        .iter()
        .filter(|other| other.variant != suggested)
        .collect();
    // The sort is stable: candidates with equal compile times keep their order. Those with None come first; they are not tried.
    others.sort_by_key(|other| other.compile_time);
    for other in others {
        let outcome = match other.compile_time {
            None => Outcome::Dear,
            Some(time) if left.is_zero() || time > left => Outcome::NoTime,
            Some(_) => try_one(other.variant, &mut left),
        };
        outcomes.push((other.variant, outcome));
    }
    outcomes
}

/// A kernel and its time.
pub type Run<V> = (V, Duration);

/// The winner and the second fastest kernel. The winner is the first outcome (the suggested kernel), unless another is clearly
/// faster. `None` if nothing was measured.
pub fn winner<V: Copy>(outcomes: &[(V, Outcome)]) -> Option<(Run<V>, Option<Run<V>>)> {
    let time = |(variant, outcome): &(V, Outcome)| match outcome {
        Outcome::Measured(timing) => Some((*variant, timing.run)),
        _ => None,
    };
    let suggested = outcomes.first().and_then(time);
    let mut others: Vec<Run<V>> = outcomes.iter().skip(1).filter_map(time).collect();
    // The sort is stable: among equal times, the one that was tried first.
    others.sort_by_key(|(_, run)| *run);
    let best = others.first().copied();
    match (suggested, best) {
        (Some(kept), Some(best))
            if best.1.as_secs_f64() < kept.1.as_secs_f64() * WORTH_A_CHANGE =>
        {
            // The suggested kernel may be the second fastest.
            let second = others.get(1).copied().filter(|second| second.1 < kept.1);
            Some((best, second.or(Some(kept))))
        }
        (Some(kept), next) => Some((kept, next)),
        (None, best) => Some((best?, others.get(1).copied())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    fn candidate(variant: char, compile_time: Option<u64>) -> Candidate<char> {
        Candidate {
            variant,
            compile_time: compile_time.map(ms),
        }
    }

    fn timing(first: u64, run: u64) -> Timing {
        Timing {
            first: ms(first),
            run: ms(run),
            total: ms(first + 5 * run),
        }
    }

    /// Runs a search over kernels that take `(first, run)`; returns those that ran, in order, and the outcomes.
    fn run(
        candidates: &[Candidate<char>],
        budget: u64,
        times: impl Fn(char) -> (u64, u64),
    ) -> (String, Vec<(char, Outcome)>) {
        let mut ran = String::new();
        let outcomes = search('s', candidates, ms(budget), |variant| {
            ran.push(variant);
            let (first, run) = times(variant);
            Ok(timing(first, run))
        });
        (ran, outcomes)
    }

    #[test]
    fn the_suggested_one_is_first_then_the_cheapest_and_never_a_dear_one() {
        let candidates = [
            candidate('d', None),
            candidate('c', Some(30)),
            candidate('s', Some(20)),
            candidate('b', Some(10)),
            candidate('a', Some(10)),
        ];
        let (ran, outcomes) = run(&candidates, 10_000, |_| (10, 1));
        assert_eq!(ran, "sbac");
        assert_eq!(outcomes.len(), 5);
        assert!(matches!(outcomes[1], ('d', Outcome::Dear)));
    }

    #[test]
    fn a_compilation_beyond_the_budget_ends_the_search() {
        let candidates = [
            candidate('a', Some(1)),
            candidate('b', Some(1)),
            candidate('c', Some(2)),
        ];
        let (ran, outcomes) = run(&candidates, 100, |variant| {
            (if variant == 'a' { 101 } else { 2 }, 1)
        });
        assert_eq!(ran, "sa");
        assert!(matches!(outcomes[2], ('b', Outcome::NoTime)));
        assert!(matches!(outcomes[3], ('c', Outcome::NoTime)));
    }

    #[test]
    fn what_is_known_to_take_longer_than_is_left_is_not_begun() {
        let candidates = [candidate('a', Some(60)), candidate('b', Some(10))];
        let (ran, _) = run(&candidates, 100, |_| (45, 1));
        // 50 of 100 are left after the suggested one, then nothing.
        assert_eq!(ran, "sb");
        let (ran, _) = run(&candidates, 0, |_| (45, 1));
        assert_eq!(ran, "s");
    }

    #[test]
    fn one_that_fails_is_passed_over() {
        let candidates = [candidate('a', Some(1)), candidate('b', Some(1))];
        let outcomes = search('s', &candidates, ms(100), |variant| match variant {
            'b' => Ok(timing(1, 1)),
            _ => Err(Error::DeviceLost {
                reason: "gone".to_owned(),
            }),
        });
        assert!(matches!(outcomes[0].1, Outcome::Failed(_)));
        assert_eq!(winner(&outcomes), Some((('b', ms(1)), None)));
        assert_eq!(winner(&outcomes[..2]), None);
    }

    #[test]
    fn another_wins_only_when_it_is_clearly_faster() {
        let outcomes = |times: &[(char, u64)]| -> Vec<(char, Outcome)> {
            let outcome = |&(variant, run)| (variant, Outcome::Measured(timing(0, run)));
            times.iter().map(outcome).collect()
        };
        let won = |times: &[(char, u64)]| {
            winner(&outcomes(times)).map(|((variant, _), next)| (variant, next.map(|n| n.0)))
        };
        assert_eq!(
            won(&[('s', 100), ('a', 96), ('b', 120)]),
            Some(('s', Some('a')))
        );
        assert_eq!(
            won(&[('s', 100), ('a', 94), ('b', 93)]),
            Some(('b', Some('a')))
        );
        assert_eq!(
            won(&[('s', 100), ('a', 120), ('b', 110)]),
            Some(('s', Some('b')))
        );
        assert_eq!(
            won(&[('s', 100), ('a', 50), ('b', 50)]),
            Some(('a', Some('b')))
        );
        assert_eq!(won(&[('s', 100)]), Some(('s', None)));
        assert_eq!(won(&[]), None);
    }
}
