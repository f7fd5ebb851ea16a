//! What long sequences cost: time and memory for each token out of core and in core, and more ranks with as many tokens each.
//!
//! `cargo bench --bench scale`, or with `--quick` to see that it works.

mod processor;
mod ranks;
mod sequences;

use std::error::Error;
use std::process::ExitCode;
use std::thread;

use clap::{Parser, value_parser};
use dilated_attention::{Context, DilatedAttentionConfig};
use testing::measurement::date;

/// Elements of the only head.
const DIM: usize = 16;

/// Time and memory of long sequences out of core and in core, and weak scaling over ranks of this process
#[derive(Parser)]
struct Options {
    /// Short sequences: that everything works, not what it measures
    #[arg(long)]
    quick: bool,
    /// Of each measurement [default: 3, with --quick 2]
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    repetitions: Option<u32>,
    /// Only this table
    #[arg(long, value_name = "TABLE", value_parser = ["out-of-core", "in-core", "ranks"])]
    only: Option<String>,
    /// Cargo passes it to every benchmark.
    #[arg(long = "bench", hide = true)]
    _bench: bool,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), Box<dyn Error>> {
    let context = Context::new_blocking()?;
    let adapter = context.adapter_info();
    println!(
        "adapter   {}, {}, {}",
        adapter.name,
        adapter.driver_info,
        date()
    );
    let cores = thread::available_parallelism().map_or(1, usize::from);
    println!("cores     {cores}, which the device, the host and all ranks share");
    println!("attention 1 head of {DIM}, f32, branches 4096/1 65536/16");
    let default = if options.quick { 2 } else { 3 };
    let repetitions = options.repetitions.unwrap_or(default) as usize;
    println!("shown     medians of {repetitions}, with the range; MiB are the most device memory");
    let wanted = |table: &str| options.only.as_deref().is_none_or(|only| only == table);
    if wanted("out-of-core") {
        let exponents: &[u32] = match options.quick {
            true => &[16, 17],
            false => &[16, 18, 20, 22, 24],
        };
        sequences::out_of_core(&context, exponents, repetitions)?;
    }
    if wanted("in-core") {
        let exponents: &[u32] = match options.quick {
            true => &[16, 17],
            false => &[16, 17, 18, 19, 20, 21],
        };
        sequences::in_core(&context, exponents, repetitions)?;
    }
    if wanted("ranks") {
        ranks::weak_scaling(&context, options.quick, repetitions)?;
    }
    Ok(())
}

fn config() -> dilated_attention::Result<DilatedAttentionConfig> {
    DilatedAttentionConfig::new(1, DIM, &[4096, 65_536], &[1, 16])
}

/// Elements of q, k or v (`input` 0, 1 or 2) from a position on: numbers in -1..1.
fn fill(input: u64, first: usize, rows: &mut [f32]) {
    for (index, to) in rows.iter_mut().enumerate() {
        let mut bits = (first * DIM + index) as u64 * 4 + input;
        bits = (bits ^ (bits >> 31)).wrapping_mul(0x7fb5_d329_728e_a185);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x81da_def4_bc2d_d44d);
        *to = (bits >> 54) as f32 / 512.0 - 1.0;
    }
}
