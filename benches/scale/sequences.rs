//! Time and memory for each token of one sequence, at fixed branches.

use std::error::Error;
use std::io;
use std::ops::Range;

use dilated_attention::out_of_core::{Generated, OutOfCoreOptions, OutOfCorePlan, TokenSink};
use dilated_attention::{Context, DType, DilatedAttention, Result, Tensor};
use testing::measurement::{Spread, range};

use crate::processor::{Took, cores};
use crate::{DIM, config, fill};

/// MiB of device memory out of core.
const BUDGET_MIB: u64 = 256;

/// Takes the output and forgets it.
struct Nowhere;

impl TokenSink for Nowhere {
    fn dtype(&self) -> DType {
        DType::F32
    }

    fn num_elements(&self) -> Option<u64> {
        None
    }

    fn write(&mut self, _: Range<usize>, _: &[u8]) -> io::Result<()> {
        Ok(())
    }
}

/// Measurements of one length.
struct Length {
    tokens: usize,
    calls: Vec<Took>,
    peak_bytes: u64,
    note: String,
}

impl Length {
    fn new(tokens: usize, note: String) -> Self {
        Self {
            tokens,
            calls: Vec::new(),
            peak_bytes: 0,
            note,
        }
    }

    /// Measures one call more, on a device without cached buffers of other lengths.
    fn again(&mut self, context: &Context, call: impl FnOnce() -> Result<()>) -> Result<()> {
        context.wait()?;
        context.pool().force_trim();
        context.pool().reset_peaks();
        self.calls.push(Took::of(call)?);
        self.peak_bytes = self.peak_bytes.max(context.pool().stats().held_bytes.peak);
        Ok(())
    }

    fn nanoseconds(&self) -> Spread {
        let of_token = |call: &Took| call.wall * 1e9 / self.tokens as f64;
        Spread::of(self.calls.iter().map(of_token).collect())
    }
}

fn print(title: &str, lengths: &[Length]) {
    println!("\n{title}");
    println!(
        "{:>10} {:>26} {:>14} {:>8} {:>18}",
        "tokens", "ns a token", "to shortest", "MiB", "program + system"
    );
    for length in lengths {
        let (here, first) = (length.nanoseconds(), lengths[0].nanoseconds());
        println!(
            "{:>10} {:>26} {:>12.1} % {:>8.1} {:>12} cores{}",
            length.tokens,
            range(here, 1),
            (here.median / first.median - 1.0) * 100.0,
            length.peak_bytes as f64 / f64::from(1 << 20),
            cores(&length.calls),
            length.note,
        );
    }
}

/// Inputs are functions of the position, and the output goes nowhere.
pub fn out_of_core(
    context: &Context,
    exponents: &[u32],
    repetitions: usize,
) -> std::result::Result<(), Box<dyn Error>> {
    let attention = DilatedAttention::new(context, config()?)?;
    let options = OutOfCoreOptions::new(BUDGET_MIB << 20);
    let plan = |exponent: &u32| attention.plan_out_of_core(1 << exponent, DType::F32, &options);
    let plans: Vec<OutOfCorePlan> = exponents.iter().map(plan).collect::<Result<_>>()?;
    let input = |input: u64| {
        Generated::new(move |positions: Range<usize>, rows: &mut [f32]| {
            fill(input, positions.start, rows);
        })
    };
    let (q, k, v) = (input(0), input(1), input(2));
    let run = |plan: &OutOfCorePlan| {
        let mut sink = Nowhere;
        let mut run = attention.run_out_of_core(plan, [&q, &k, &v], &mut sink)?;
        while !run.is_done() {
            run.advance()?;
        }
        Ok(())
    };
    // Compiles.
    run(&plans[0])?;
    let of = |plan: &OutOfCorePlan| {
        let blocks = format!(", blocks: {}", plan.num_blocks());
        Length::new(plan.tokens(), blocks)
    };
    let mut lengths: Vec<Length> = plans.iter().map(of).collect();
    // In turns, so that a machine whose speed drifts does not bend the line.
    for _ in 0..repetitions {
        for (length, plan) in lengths.iter_mut().zip(&plans) {
            length.again(context, || run(plan))?;
        }
    }
    print(
        &format!("out of core, within {BUDGET_MIB} MiB of device memory"),
        &lengths,
    );
    Ok(())
}

/// The whole sequence is on the device; uploads do not count.
pub fn in_core(
    context: &Context,
    exponents: &[u32],
    repetitions: usize,
) -> std::result::Result<(), Box<dyn Error>> {
    let attention = DilatedAttention::new(context, config()?)?;
    let upload = |tokens: usize| -> Result<[Tensor; 3]> {
        let mut recorder = context.recorder("inputs");
        let tensors = [0, 1, 2].map(|input| {
            let mut values = vec![0.0; tokens * DIM];
            fill(input, 0, &mut values);
            recorder.upload("input", &[1, tokens, 1, DIM], &values)
        });
        let [q, k, v] = tensors;
        let tensors = [q?, k?, v?];
        recorder.submit()?.wait()?;
        Ok(tensors)
    };
    let run = |[q, k, v]: &[Tensor; 3]| {
        let mut recorder = context.recorder("forward");
        let _output = attention.forward(&mut recorder, q, k, v)?;
        recorder.submit()?.wait()
    };
    run(&upload(1 << exponents[0])?)?;
    let of = |exponent: &u32| Length::new(1 << exponent, String::new());
    let mut lengths: Vec<Length> = exponents.iter().map(of).collect();
    for _ in 0..repetitions {
        for length in &mut lengths {
            let inputs = upload(length.tokens)?;
            length.again(context, || run(&inputs))?;
        }
    }
    print("in core, inputs included in the memory", &lengths);
    Ok(())
}
