//! Dilated attention over a billion positions, out of core: `cargo run --release --example billion -- --help`.
//!
//! Queries, keys and values are functions of the position, computed when they are read; the output goes to a sink that keeps a
//! checksum and sampled rows. So nothing has as many elements as the sequence, on the device or on the host. The sampled rows are
//! computed again in f64, each from the keys that the definition names.

use std::collections::BTreeMap;
use std::error::Error;
use std::io;
use std::ops::Range;
use std::process::ExitCode;
use std::time::Instant;

use clap::{Parser, ValueEnum};
use dilated_attention::half::f16;
use dilated_attention::out_of_core::{Generated, OutOfCoreOptions, TokenSink};
use dilated_attention::{Context, DType, DilatedAttention, DilatedAttentionConfig, Element};
use indicatif::{ProgressBar, ProgressStyle};
use program::say;

/// Elements of a position.
const DIM: usize = 16;

/// Dilated attention over a billion positions, which are nowhere as a whole
///
/// Exits with 0 when all sampled rows are right, 1 when one is not, 2 when they could not be checked.
#[derive(Parser)]
#[command(verbatim_doc_comment)]
struct Options {
    /// Positions of the sequence
    #[arg(long, default_value_t = 1 << 30)]
    positions: usize,
    /// Branches, each a segment length and a dilation rate
    #[arg(long, value_name = "LENGTH/RATE", num_args = 1.., default_values = ["4096/1", "65536/16", "16777216/4096"], value_parser = program::branch)]
    branches: Vec<(usize, usize)>,
    /// MiB of device memory
    #[arg(long, default_value_t = 256)]
    budget_mib: u64,
    /// Type of queries, keys, values and outputs
    #[arg(long, value_enum, default_value_t = Stored::F32)]
    dtype: Stored,
    /// Rows that are computed again in f64
    #[arg(long, default_value_t = 64)]
    samples: usize,
    /// Only says what it would do
    #[arg(long)]
    plan: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Stored {
    F32,
    F16,
}

fn main() -> ExitCode {
    program::run_or(2, |options: Options| match options.dtype {
        Stored::F32 => run::<f32>(&options, |x| x, |x| x),
        Stored::F16 => run::<f16>(&options, f16::from_f32, f16::to_f32),
    })
}

/// Element `element` of q, k or v (`input` 0, 1 or 2) at a position: a number in -1..1 that is exact in f16.
fn value(input: u64, position: usize, element: usize) -> f32 {
    let mut bits = (position * DIM + element) as u64 * 4 + input;
    bits = (bits ^ (bits >> 31)).wrapping_mul(0x7fb5_d329_728e_a185);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x81da_def4_bc2d_d44d);
    (bits >> 54) as f32 / 512.0 - 1.0
}

fn run<T: Element>(
    options: &Options,
    narrow: impl Fn(f32) -> T + Sync + Copy,
    wide: impl Fn(T) -> f32,
) -> Result<ExitCode, Box<dyn Error>> {
    let (lengths, rates): (Vec<usize>, Vec<usize>) = options.branches.iter().copied().unzip();
    let config = DilatedAttentionConfig::new(1, DIM, &lengths, &rates)?;
    let context = Context::new_blocking()?;
    let adapter = context.adapter_info();
    say!("adapter   {}, {}", adapter.name, adapter.driver_info);
    let attention = DilatedAttention::new(&context, config)?;
    let budget = OutOfCoreOptions::new(options.budget_mib << 20);
    let plan = attention.plan_out_of_core(options.positions, T::DTYPE, &budget)?;
    say!("{plan}");
    if options.plan {
        return Ok(ExitCode::SUCCESS);
    }
    let input = |input: u64| {
        Generated::new(move |positions: Range<usize>, rows: &mut [T]| {
            for (position, row) in positions.zip(rows.chunks_mut(DIM)) {
                for (element, to) in row.iter_mut().enumerate() {
                    *to = narrow(value(input, position, element));
                }
            }
        })
    };
    let (q, k, v) = (input(0), input(1), input(2));
    // Spread over the sequence, the ends included.
    let last = options.positions - 1;
    let steps = options.samples.max(2) - 1;
    let samples = (0..=steps).map(|step| (last as u128 * step as u128 / steps as u128) as usize);
    let mut sink = Sampled::<T> {
        checksum: crc32fast::Hasher::new(),
        rows: samples.map(|position| (position, Vec::new())).collect(),
    };
    context.pool().reset_peaks();
    let begin = Instant::now();
    let style = ProgressStyle::with_template("[{bar:40}] {percent:>3} %, {eta} left")?;
    let bar = ProgressBar::new(1000).with_style(style);
    let mut run = attention.run_out_of_core(&plan, [&q, &k, &v], &mut sink)?;
    while !run.is_done() {
        bar.set_position((1000.0 * run.advance()?.fraction()) as u64);
    }
    drop(run);
    bar.finish_and_clear();
    let seconds = begin.elapsed().as_secs_f64();
    let peak = context.pool().stats().held_bytes.peak;
    say!(
        "computed  {seconds:.1} s, {:.2} million positions a second, {:.1} GFLOP/s",
        options.positions as f64 / 1e6 / seconds,
        plan.flop as f64 / 1e9 / seconds
    );
    let billion = 1usize << 30;
    if options.positions < billion {
        // Windows of the longest segments grow with the sequence only up to their length.
        let minutes = seconds * billion as f64 / options.positions as f64 / 60.0;
        say!("projected {minutes:.0} minutes for 2^30 positions at this rate, with these branches");
    }
    say!(
        "memory    {:.1} MiB of device memory at most, of {} MiB",
        peak as f64 / f64::from(1 << 20),
        options.budget_mib
    );
    say!(
        "checksum  {:08x} (CRC-32 of the output)",
        sink.checksum.finalize()
    );

    let (mut worst, mut largest) = (0f64, 0f64);
    for (position, row) in &sink.rows {
        let expected = exact(options, *position);
        for (value, expected) in row.iter().zip(expected) {
            let error = (f64::from(wide(*value)) - expected).abs();
            worst = if error > worst || error.is_nan() {
                error
            } else {
                worst
            };
            largest = largest.max(expected.abs());
        }
    }
    // Values are below 1, and their f32 sums may be off by 8 units in the last place of 1. Half precision rounds once more.
    let of_sums = 2f64.powi(-20);
    let allowed = match T::DTYPE {
        DType::F32 => of_sums,
        _ => of_sums + largest * 2f64.powi(-11),
    };
    let holds = worst <= allowed;
    say!(
        "checked   {} rows: largest {largest:.3e}, worst error {worst:.3e}, {allowed:.3e} allowed: {}",
        sink.rows.len(),
        if holds { "ok" } else { "WRONG" }
    );
    Ok(ExitCode::from(u8::from(!holds)))
}

/// Keeps a checksum of the output, and some rows.
struct Sampled<T> {
    checksum: crc32fast::Hasher,
    rows: BTreeMap<usize, Vec<T>>,
}

impl<T: Element> TokenSink for Sampled<T> {
    fn dtype(&self) -> DType {
        T::DTYPE
    }

    fn num_elements(&self) -> Option<u64> {
        None
    }

    fn write(&mut self, positions: Range<usize>, rows: &[u8]) -> io::Result<()> {
        self.checksum.update(rows);
        let row_bytes = rows.len() / positions.len();
        for (position, row) in self.rows.range_mut(positions.clone()) {
            let bytes = &rows[(position - positions.start) * row_bytes..][..row_bytes];
            *row = bytemuck::pod_collect_to_vec(bytes);
        }
        Ok(())
    }
}

/// A row of the output in f64: one softmax over the keys of all branches. The only head has no offset, so a branch of segments of w
/// and rate r has a row at a position if that is a multiple of r from the segment's begin, and its keys are all such positions.
fn exact(options: &Options, position: usize) -> Vec<f64> {
    let row =
        |input, position| (0..DIM).map(move |element| f64::from(value(input, position, element)));
    let q: Vec<f64> = row(0, position).collect();
    let scale = 1.0 / (DIM as f64).sqrt();
    let (mut sum, mut out) = (0.0, vec![0.0; DIM]);
    for &(length, rate) in &options.branches {
        let length = length.min(options.positions);
        let begin = position / length * length;
        if !(position - begin).is_multiple_of(rate) {
            continue;
        }
        let end = options.positions.min(begin + length);
        for key in (begin..end).step_by(rate) {
            let score: f64 = row(1, key).zip(&q).map(|(k, q)| k * q).sum();
            // Scores are at most 4, so that no maximum is needed.
            let weight = (scale * score).exp();
            sum += weight;
            for (out, v) in out.iter_mut().zip(row(2, key)) {
                *out += weight * v;
            }
        }
    }
    out.iter_mut().for_each(|out| *out /= sum);
    out
}
