//! Time per token at fixed branches, over the length of the sequence.

use std::error::Error;
use std::rc::Rc;

use dilated_attention::DType;
use serde_json::json;
use testing::cases::Case;
use testing::measurement::{Spread, range};

use crate::attention::{Direction, Prepared};
use crate::machine::Machine;
use crate::report::Report;
use crate::timing::{Clock, Series, Subject};

/// One head of 16, so that four million tokens fit in 256 MiB a tensor.
fn case(tokens: usize) -> Case {
    Case::new(
        format!("growth, {tokens} tokens"),
        [1, 16, tokens],
        &[512, 4096, 65_536],
        &[1, 8, 64],
    )
}

/// Prints a table; returns whether all results were right.
pub fn run(
    machine: &Machine,
    clock: &Rc<Clock>,
    report: &mut Report,
    quick: bool,
) -> Result<bool, Box<dyn Error>> {
    let (lengths, repetitions): (&[usize], usize) = match quick {
        true => (&[1 << 16, 1 << 17], 2),
        false => (&[1 << 16, 1 << 18, 1 << 20, 1 << 22], 5),
    };
    let context = &machine.context;
    let prepared = lengths
        .iter()
        .map(|&tokens| Prepared::new(context, &case(tokens), None, Direction::Forward, DType::F32))
        .collect::<dilated_attention::Result<Vec<_>>>()?;
    let start = |timed| {
        Series::start(Subject {
            context,
            clock,
            timed,
        })
    };
    let mut series = prepared
        .iter()
        .map(|prepared| start(prepared))
        .collect::<dilated_attention::Result<Vec<_>>>()?;
    let mut times = vec![Vec::new(); lengths.len()];
    for _ in 0..repetitions {
        for ((times, series), &tokens) in times.iter_mut().zip(&mut series).zip(lengths) {
            times.push(series.again()?.best_known() / tokens as f64 * 1e9);
        }
    }
    println!(
        "\ntime per token, 1 head of 16, branches 512/1 4096/8 65536/64, {repetitions} repetitions, ns"
    );
    let mut all_right = true;
    let spreads: Vec<Spread> = times.into_iter().map(Spread::of).collect();
    for ((&tokens, &nanoseconds), series) in lengths.iter().zip(&spreads).zip(series) {
        let measured = series.finish()?;
        let right = measured.error <= 1.0;
        let against = (nanoseconds.median / spreads[0].median - 1.0) * 100.0;
        let note = if right { "" } else { "  WRONG" };
        println!(
            "{tokens:>8} tokens  {:>24}  {against:+.1} %  error {:.2}{note}",
            range(nanoseconds, 1),
            measured.error,
        );
        report.object(json!({
            "group": "growth", "case": case(tokens).name, "tokens": tokens, "ns_per_token": nanoseconds,
            "percent_against_shortest": against, "repetitions": repetitions, "peak_bytes": measured.peak_bytes,
            "floor_bytes": measured.floor_bytes, "dispatches": measured.dispatches,
            "error_of_allowed": measured.error.is_finite().then_some(measured.error),
        }))?;
        all_right &= right;
    }
    Ok(all_right)
}
