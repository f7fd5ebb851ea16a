//! What plans say alike.

use std::fmt;
use std::time::Duration;

use crate::error::Error;
use crate::plan::needs::{check_budget, time_at, write_memory, write_time};

/// What is written to a formatter.
struct Lines<F>(F);

impl<F: Fn(&mut fmt::Formatter<'_>) -> fmt::Result> fmt::Display for Lines<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (self.0)(f)
    }
}

#[test]
fn memory_and_time_have_a_line_each() {
    let memory = Lines(|f: &mut fmt::Formatter<'_>| {
        write_memory(f, 3 << 20, 5 << 20, (512 << 10, "are weights"))
    });
    assert_eq!(
        memory.to_string(),
        "memory      3.0 MiB asked for at most, in buffers of 5.0 MiB; 0.5 of them are weights\n"
    );
    let time = |time: Option<Duration>| {
        Lines(move |f: &mut fmt::Formatter<'_>| write_time(f, time)).to_string()
    };
    assert_eq!(
        time(Some(Duration::from_millis(2500))),
        "time        about 2.500 s, as measured here before\n"
    );
    assert_eq!(time(None), "");
    assert_eq!(time_at(3_000_000_000, 2e9), Duration::from_millis(1500));
    for speed in [0.0, f64::NAN, -1.0] {
        assert_eq!(time_at(1, speed), Duration::MAX);
    }
}

#[test]
fn a_budget_is_kept_to_the_byte() {
    let checked = |held_bytes| check_budget("a run", held_bytes, 100, "take more");
    checked(100).expect("fits");
    match checked(101) {
        Err(Error::PlanOverBudget {
            requested_bytes,
            budget_bytes,
            ..
        }) => assert_eq!((requested_bytes, budget_bytes), (101, 100)),
        other => panic!("{other:?}"),
    }
}
