//! What all plans say alike: whether they fit a budget, their time, and of whole pieces of work (a model's run, a training step) their
//! lines of text.

#[cfg(feature = "models")]
use std::fmt;
use std::time::Duration;

use crate::error::{Error, Result};

/// Time of so many floating point operations on an adapter that does `flop_per_second`.
pub(crate) fn time_at(flop: u64, flop_per_second: f64) -> Duration {
    Duration::try_from_secs_f64(flop as f64 / flop_per_second).unwrap_or(Duration::MAX)
}

/// Whether the pool stays within `budget_bytes`.
///
/// # Errors
/// [`Error::PlanOverBudget`].
pub(crate) fn check_budget(
    what: &'static str,
    held_bytes: u64,
    budget_bytes: u64,
    next_step: &'static str,
) -> Result<()> {
    match held_bytes <= budget_bytes {
        true => Ok(()),
        false => Err(Error::PlanOverBudget {
            what,
            requested_bytes: held_bytes,
            budget_bytes,
            next_step,
        }),
    }
}

/// The line on memory, of which `kept_bytes` are `kept`.
#[cfg(feature = "models")]
pub(crate) fn write_memory(
    f: &mut fmt::Formatter<'_>,
    requested_bytes: u64,
    held_bytes: u64,
    (kept_bytes, kept): (u64, &str),
) -> fmt::Result {
    writeln!(
        f,
        "memory      {:.1} MiB asked for at most, in buffers of {:.1} MiB; {:.1} of them {kept}",
        mebibytes(requested_bytes),
        mebibytes(held_bytes),
        mebibytes(kept_bytes)
    )
}

/// The line on time, where it is known.
#[cfg(feature = "models")]
pub(crate) fn write_time(f: &mut fmt::Formatter<'_>, expected: Option<Duration>) -> fmt::Result {
    match expected {
        Some(time) => writeln!(
            f,
            "time        about {:.3} s, as measured here before",
            time.as_secs_f64()
        ),
        None => Ok(()),
    }
}

#[cfg(feature = "models")]
pub(crate) fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
