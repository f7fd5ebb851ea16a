//! Learning rates.

use std::fmt;
use std::sync::Arc;

use crate::error::{Error, Result};

/// The learning rate of each step, from 1.
///
/// ```
/// use dilated_attention::training::LearningRate;
/// let halved_every_1000_steps = LearningRate::from_fn(|step| 1e-3 * 0.5f32.powi((step / 1000) as i32));
/// assert_eq!(halved_every_1000_steps.at(2500), 2.5e-4);
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum LearningRate {
    /// The same at every step.
    Constant(f32),
    /// Rises linearly from 0 to `peak` over `warm_up` steps, then falls along half a cosine to `end` at step `total`, and
    /// stays there (Loshchilov and Hutter 2017).
    Cosine {
        /// Highest rate.
        peak: f32,
        /// Rate at the end.
        end: f32,
        /// Steps of the rise.
        warm_up: u64,
        /// Steps in all.
        total: u64,
    },
    /// Rises linearly from 0 to `peak` over `warm_up` steps, then falls linearly to `end` at step `total`: what LongNet was
    /// trained with.
    Linear {
        /// Highest rate.
        peak: f32,
        /// Rate at the end.
        end: f32,
        /// Steps of the rise.
        warm_up: u64,
        /// Steps in all.
        total: u64,
    },
    /// Rises linearly from 0 to `peak` over `warm_up` steps, then falls as `1 / sqrt(step)` (Vaswani et al. 2017).
    InverseSqrt {
        /// Highest rate.
        peak: f32,
        /// Steps of the rise.
        warm_up: u64,
    },
    /// Computed by a function; made by [`from_fn`](Self::from_fn).
    Function(RateFunction),
}

/// A function from the number of a step, from 1, to its learning rate.
#[derive(Clone)]
pub struct RateFunction(Arc<dyn Fn(u64) -> f32 + Send + Sync>);

impl fmt::Debug for RateFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RateFunction")
    }
}

impl LearningRate {
    /// The rate that `rate` returns for the number of a step, counted from 1. Recording a step whose rate is negative or not
    /// finite is an error. A checkpoint does not hold the function: give it again when you resume.
    pub fn from_fn(rate: impl Fn(u64) -> f32 + Send + Sync + 'static) -> Self {
        Self::Function(RateFunction(Arc::new(rate)))
    }

    /// The rate of step `step`.
    pub fn at(&self, step: u64) -> f32 {
        // In double precision: steps beyond 2^24 are still told apart.
        let at = step as f64;
        let fall = |peak: f32, end: f32, warm_up: u64, total: u64, shape: fn(f64) -> f64| {
            if step < warm_up {
                return (f64::from(peak) * at / warm_up as f64) as f32;
            }
            let steps = total.saturating_sub(warm_up).max(1) as f64;
            let gone = ((at - warm_up as f64) / steps).min(1.0);
            let (peak, end) = (f64::from(peak), f64::from(end));
            (end + (peak - end) * shape(gone)) as f32
        };
        match *self {
            Self::Function(RateFunction(ref rate)) => rate(step),
            Self::Constant(rate) => rate,
            Self::Cosine {
                peak,
                end,
                warm_up,
                total,
            } => fall(peak, end, warm_up, total, |gone| {
                0.5 * (1.0 + (std::f64::consts::PI * gone).cos())
            }),
            Self::Linear {
                peak,
                end,
                warm_up,
                total,
            } => fall(peak, end, warm_up, total, |gone| 1.0 - gone),
            Self::InverseSqrt { peak, warm_up } => {
                let warm_up = warm_up.max(1) as f64;
                (f64::from(peak) * (at / warm_up).min((warm_up / at.max(1.0)).sqrt())) as f32
            }
        }
    }

    /// The rate of step `step`, checked.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] when it is negative or not finite.
    pub(super) fn checked_at(&self, step: u64) -> Result<f32> {
        let rate = self.at(step);
        match rate >= 0.0 && rate.is_finite() {
            true => Ok(rate),
            false => Err(Error::InvalidConfig {
                what: "learning rate",
                given: format!("{rate} at step {step}"),
                need: "at least 0 and finite",
            }),
        }
    }

    /// Checks every number. The rates of a function are checked step by step instead.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] names the first number that is out of range.
    pub fn check(&self) -> Result<()> {
        let (rate, peak, end) = (
            "learning rate",
            "peak of the learning rate",
            "end of the learning rate",
        );
        let (rates, steps): (&[(&'static str, f32)], _) = match *self {
            Self::Function(_) => (&[], None),
            Self::Constant(value) => (&[(rate, value)], None),
            Self::InverseSqrt { peak: value, .. } => (&[(peak, value)], None),
            Self::Cosine {
                peak: highest,
                end: last,
                warm_up,
                total,
            }
            | Self::Linear {
                peak: highest,
                end: last,
                warm_up,
                total,
            } => (&[(peak, highest), (end, last)], Some((warm_up, total))),
        };
        for &(what, value) in rates {
            if !(value >= 0.0 && value.is_finite()) {
                return Err(Error::InvalidConfig {
                    what,
                    given: value.to_string(),
                    need: "at least 0 and finite",
                });
            }
        }
        if let &[(_, highest), (what, last)] = rates
            && last > highest
        {
            return Err(Error::InvalidConfig {
                what,
                given: format!("{last} after a peak of {highest}"),
                need: "at most the peak, from which the rate falls",
            });
        }
        match steps {
            Some((warm_up, total)) if warm_up > total => Err(Error::InvalidConfig {
                what: "warm_up of the learning rate",
                given: format!("{warm_up} of {total} steps in all"),
                need: "at most total",
            }),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::LearningRate;

    #[test]
    fn rates_rise_and_fall() {
        let (peak, end, warm_up, total) = (2.0, 0.5, 10, 110);
        let cosine = LearningRate::Cosine {
            peak,
            end,
            warm_up,
            total,
        };
        let linear = LearningRate::Linear {
            peak,
            end,
            warm_up,
            total,
        };
        for (rate, half) in [(&cosine, 1.25), (&linear, 1.25)] {
            assert_eq!([0, 5, 10].map(|step| rate.at(step)), [0.0, 1.0, 2.0]);
            assert!((rate.at(60) - half).abs() < 1e-6);
            assert_eq!([110, 1_000_000].map(|step| rate.at(step)), [0.5, 0.5]);
        }
        assert!(cosine.at(30) > linear.at(30) && cosine.at(90) < linear.at(90));
        let root = LearningRate::InverseSqrt { peak, warm_up };
        assert_eq!([5, 10, 40].map(|step| root.at(step)), [1.0, 2.0, 1.0]);
        // No steps to rise, or none to fall.
        for step in 0..3 {
            let rate = LearningRate::Linear {
                peak,
                end,
                warm_up: 0,
                total: 0,
            };
            assert!(rate.at(step).is_finite());
            let rate = LearningRate::InverseSqrt { peak, warm_up: 0 };
            assert!(rate.at(step).is_finite());
        }
    }

    #[test]
    fn a_function_is_asked_step_by_step() {
        let rate = LearningRate::from_fn(|step| match step {
            3 => f32::NAN,
            4 => -1.0,
            5 => f32::INFINITY,
            _ => 1.0 / step as f32,
        });
        rate.check().expect("is not asked");
        assert_eq!(rate.checked_at(2).expect("means something"), 0.5);
        for (step, told) in [
            (3, "NaN at step 3"),
            (4, "-1 at step 4"),
            (5, "inf at step 5"),
        ] {
            let error = rate
                .checked_at(step)
                .expect_err("means nothing")
                .to_string();
            assert_eq!(
                error,
                format!("learning rate is {told}; it must be at least 0 and finite")
            );
        }
        assert_eq!(rate.clone().at(8), 0.125);
        assert_eq!(format!("{rate:?}"), "Function(RateFunction)");
    }

    #[test]
    fn numbers_that_mean_nothing_are_named_with_their_own_rule() {
        let falling = |peak, end, warm_up, total| LearningRate::Linear {
            peak,
            end,
            warm_up,
            total,
        };
        for (rate, told) in [
            (
                LearningRate::Constant(f32::NAN),
                "learning rate is NaN; it must be at least 0 and finite",
            ),
            (
                LearningRate::Constant(f32::INFINITY),
                "learning rate is inf; it must be at least 0 and finite",
            ),
            (
                LearningRate::Constant(-1.0),
                "learning rate is -1; it must be at least 0 and finite",
            ),
            (
                LearningRate::InverseSqrt {
                    peak: f32::NAN,
                    warm_up: 3,
                },
                "peak of the learning rate is NaN; it must be at least 0 and finite",
            ),
            (
                falling(1.0, f32::NAN, 1, 2),
                "end of the learning rate is NaN; it must be at least 0 and finite",
            ),
            (
                falling(1.0, 2.0, 1, 2),
                "end of the learning rate is 2 after a peak of 1; it must be at most the peak, from which the rate falls",
            ),
            (
                LearningRate::Cosine {
                    peak: 1.0,
                    end: 0.0,
                    warm_up: 20,
                    total: 10,
                },
                "warm_up of the learning rate is 20 of 10 steps in all; it must be at most total",
            ),
        ] {
            let error = rate.check().expect_err("means nothing").to_string();
            assert!(error.contains(told), "{error}");
        }
        for rate in [
            falling(1.0, 1.0, 5, 5),
            falling(0.0, 0.0, 0, 0),
            LearningRate::Constant(0.0),
        ] {
            rate.check().expect("a schedule");
        }
    }
}
