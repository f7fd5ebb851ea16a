//! The library on this machine's GPU against golden files: `cargo run --release --example conformance -- tests/golden`.
//!
//! With `--f16` or `--bf16`, attention and its gradients run in half precision: inputs are rounded to it, the reference is the f64
//! oracle of the rounded inputs, and the tolerance is twice the error of a plain implementation that stores the same type and
//! computes in f32; or, if that is more, one unit in the last place of the largest value, which is twice what storing it may
//! cost, and 1e-5 of it for log-sum-exps. The files' outputs are not compared then. Of multi-head attention, encoders and
//! decoders, outputs are compared: their gradients exist in f32 only.
//!
//! With `--chunk TOKENS`, tensors lie in parts of that many tokens: what then happens where a tensor is larger than a buffer.
//!
//! With `--budget MIB`, forwards of attention and layers of encoders and decoders run out of core, in blocks of `--chunk` tokens, and the
//! pool has that budget.
//!
//! With `--ranks P`, attention, multi-head attention, encoders and decoders, their gradients and training run over P ranks: threads with
//! a device, a pool and a share of the tokens each, item after item of a batch. After each file every pool must have all of its buffers
//! back. What ranks do not do (decoding with a cache, slide encoders) runs on one device.
//!
//! With `--kernel TIER`, the reason of each line names the kernels that ran, and stderr says in the end how many comparisons were
//! of that tier alone. Weights of models are f32, so that with cooperative matrices their products are of another tier. Over ranks,
//! they are the kernels since the last exchange of each.

use std::error::Error;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use dilated_attention::device::KernelTier;
use dilated_attention::out_of_core::OutOfCoreOptions;
use dilated_attention::pool::PoolOptions;
use dilated_attention::{ContextOptions, DType, KernelOptions};
use program::say;
use testing::conformance::{Gpu, Line, Ranks, Summary, check_file, failed_file, golden_files};

/// Compares the library on this machine's GPU with golden files
///
/// Prints one line per compared tensor, `PASS|FAIL|SKIP file tensor max_abs_err tolerance [reason]`, and last
/// `N passed, N failed, N skipped`; columns without a number hold `-`. The adapter is named on stderr.
/// Exits with 0 when nothing failed, 1 when something did, 2 when not everything could be checked.
#[derive(Parser)]
#[command(verbatim_doc_comment)]
struct Options {
    /// Golden files (.safetensors), or folders with some: tests/golden holds files to start with
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<PathBuf>,
    /// Attention and its gradients in half precision, against the f64 oracle and not the files
    #[arg(long)]
    f16: bool,
    /// As --f16, in bfloat16
    #[arg(long, conflicts_with = "f16")]
    bf16: bool,
    /// Kernels of this tier (tile, rows, broadcast, coop8 or coop16) wherever they can do what is asked; an error where the
    /// adapter has none
    #[arg(long, value_name = "TIER", value_parser = tier)]
    kernel: Option<KernelTier>,
    /// Tensors in parts of this many tokens, as where they are larger than a buffer
    #[arg(long, value_name = "TOKENS")]
    chunk: Option<NonZeroUsize>,
    /// Forwards of attention and of encoders' and decoders' layers out of core, within so much device memory, in blocks of --chunk
    /// tokens; it bounds everything else, too
    #[arg(long, value_name = "MIB")]
    budget: Option<u64>,
    /// Attention, layers and training over so many ranks, in threads with a device and a share of each sequence's tokens each
    #[arg(long, value_name = "P", conflicts_with = "budget")]
    ranks: Option<NonZeroUsize>,
}

fn tier(name: &str) -> Result<KernelTier, &'static str> {
    KernelTier::named(name).ok_or("tile, rows, broadcast, coop8 or coop16 is needed")
}

fn main() -> ExitCode {
    program::run_or(2, run)
}

fn run(options: Options) -> Result<ExitCode, Box<dyn Error>> {
    let dtype = match (options.f16, options.bf16) {
        (true, _) => DType::F16,
        (_, true) => DType::Bf16,
        _ => DType::F32,
    };
    let tier = options.kernel;
    let kernels = KernelOptions {
        tier,
        ..Default::default()
    };
    let budget_bytes = options.budget.map(|mib| mib << 20);
    let mut pool = PoolOptions::default();
    if let Some(budget_bytes) = budget_bytes {
        pool = pool.with_budget_bytes(budget_bytes);
    }
    let open = ContextOptions::new()
        .with_pool(pool)
        .with_kernels(kernels)
        .with_part_rows(options.chunk);
    let context = open.open_blocking()?;
    program::note(format_args!("adapter: {}", context.adapter_info().name));
    let mut gpu = Gpu::new(context, dtype);
    gpu.out_of_core =
        budget_bytes.map(|bytes| OutOfCoreOptions::new(bytes).with_block_tokens(options.chunk));
    if let Some(ranks) = options.ranks {
        let contexts = (0..ranks.get()).map(|_| open.open_blocking());
        gpu.ranks = Some(Ranks::new(contexts.collect::<Result<_, _>>()?));
    }
    let mut summary = Summary::default();
    let mut print = |lines: Vec<Line>| -> Result<(), &'static str> {
        for line in lines {
            summary.add(&line);
            say!("{line}");
        }
        // The lines are all that there is to this program, and its status must not say that all was checked.
        match program::is_heard() {
            true => Ok(()),
            false => Err("standard output was closed before everything was checked"),
        }
    };
    for path in options.paths {
        match golden_files(&path) {
            Ok(files) if files.is_empty() => {
                print(failed_file(
                    &path.to_string_lossy(),
                    "holds no .safetensors file",
                ))?;
            }
            Ok(files) => {
                for file in files {
                    print(check_file(&file, &mut gpu))?;
                }
            }
            Err(error) => print(failed_file(&path.to_string_lossy(), &error.to_string()))?,
        }
    }
    if let Some(tier) = tier {
        let [alone, partly, not] = summary.by_tier;
        program::note(format_args!(
            "{tier}: {alone} comparisons of its kernels alone, {partly} of its and others, {not} of others or none"
        ));
    }
    say!("{summary}");
    Ok(ExitCode::from(u8::from(summary.failed > 0)))
}
