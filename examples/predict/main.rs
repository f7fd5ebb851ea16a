//! What a step over ranks will take, before there are any: `cargo run --release --example predict -- --help`.

mod measure;

use std::error::Error;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use dilated_attention::longnet::{LongNetConfig, Rates, Recompute, StepPrediction, StepPredictor};
use dilated_attention::{DType, DeviceCaps, DilatedAttentionConfig, Mask};
use program::say;

/// Predicts a step of a model over one sequence on several ranks: bytes, memory and time of the busiest rank
///
/// Bytes are counted from what ranks need of each other; memory and time are estimates. Needs no GPU.
#[derive(Parser)]
#[command(verbatim_doc_comment)]
struct Options {
    /// Heads
    #[arg(long, default_value_t = 16)]
    heads: usize,
    /// Elements of a head
    #[arg(long, default_value_t = 48)]
    head_dim: usize,
    /// Elements of a row inside the feed-forward networks
    #[arg(long, default_value_t = 3072)]
    ffn: usize,
    /// Layers
    #[arg(long, default_value_t = 12)]
    layers: usize,
    /// Branches, each a segment length and a dilation rate
    #[arg(long, value_name = "LENGTH/RATE", num_args = 1.., default_values = ["4096/1", "65536/16", "1048576/256", "16777216/4096"], value_parser = program::branch)]
    branches: Vec<(usize, usize)>,
    /// Type of activations in inference; training is in f32
    #[arg(long, value_enum, default_value_t = Stored::F32)]
    dtype: Stored,
    /// No token attends to later ones
    #[arg(long)]
    causal: bool,
    /// As weights that were trained with torchscale expect
    #[arg(long)]
    torchscale: bool,
    /// Forward and backward, and the sum of gradients
    #[arg(long)]
    training: bool,
    /// In training, recomputes whole layers
    #[arg(long)]
    recompute_layers: bool,
    /// Numbers of ranks
    #[arg(long, value_name = "P", num_args = 1.., default_values = ["1", "8", "64", "512"])]
    ranks: Vec<usize>,
    /// Lengths of the sequence
    #[arg(long, value_name = "N", num_args = 1.., default_values = ["65536", "1048576", "16777216", "268435456", "1073741824"])]
    tokens: Vec<usize>,
    /// GFLOP/s of a device in products of matrices
    #[arg(long, value_name = "GFLOP/S", default_value = "20000", value_parser = positive)]
    products: f64,
    /// GFLOP/s of a device in attention
    #[arg(long, value_name = "GFLOP/S", default_value = "10000", value_parser = positive)]
    attention: f64,
    /// GB/s between a device and its host
    #[arg(long, value_name = "GB/S", default_value = "20", value_parser = positive)]
    host: f64,
    /// GB/s that a rank receives from the others
    #[arg(long, value_name = "GB/S", default_value = "10", value_parser = positive)]
    link: f64,
    /// Microseconds until the first of these bytes comes
    #[arg(long, value_name = "US", default_value = "20", value_parser = positive)]
    latency: f64,
    /// GiB of each device
    #[arg(long, value_name = "GIB", default_value = "80", value_parser = positive)]
    budget: f64,
    /// Instead runs small steps on this machine's adapter, ranks in threads, and compares them with their predictions
    #[arg(long)]
    measure: bool,
    /// With --measure, instead of time that of all processors, whatever else runs there; software adapters, Linux
    #[arg(long)]
    processor_time: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Stored {
    F32,
    F16,
    Bf16,
}

fn positive(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|error| format!("{error}"))?;
    match number > 0.0 && number.is_finite() {
        true => Ok(number),
        false => Err("a number above 0".to_owned()),
    }
}

fn main() -> ExitCode {
    program::run(|options: Options| match options.measure {
        true => measure::run(options.processor_time),
        false => table(&options),
    })
}

fn table(options: &Options) -> Result<(), Box<dyn Error>> {
    let (lengths, rates): (Vec<usize>, Vec<usize>) = options.branches.iter().copied().unzip();
    let mut attention =
        DilatedAttentionConfig::new(options.heads, options.head_dim, &lengths, &rates)?;
    if options.torchscale {
        attention = attention.with_torchscale();
    }
    if options.causal {
        attention = attention.with_mask(Mask::Causal);
    }
    let mut config = LongNetConfig::encoder(attention, options.layers, options.ffn);
    config.activations = match options.dtype {
        Stored::F32 => DType::F32,
        Stored::F16 => DType::F16,
        Stored::Bf16 => DType::Bf16,
    };
    let recompute = match options.recompute_layers {
        true => Recompute::Layers,
        false => Recompute::Insides,
    };
    let training = options.training.then_some(recompute);
    let predictor = StepPredictor::new(&config, training, DeviceCaps::webgpu_defaults())?;
    let rates = Rates {
        product_flop: options.products * 1e9,
        attention_flop: options.attention * 1e9,
        host_bytes: options.host * 1e9,
        link_bytes: options.link * 1e9,
        link_latency: options.latency * 1e-6,
    };
    let budget = (options.budget * f64::from(1 << 30)) as u64;
    say!(
        "{} layers of {}, network {}",
        options.layers,
        config.attention(),
        options.ffn
    );
    say!("of the busiest rank, in a step; memory and times are estimates");
    say!();
    say!(
        "{:>11} {:>6} {:>10} {:>10} {:>10} {:>10} {:>11} {:>10} {:>10} {:>10} {:>10} {:>10}",
        "tokens",
        "ranks",
        "packed",
        "dense",
        "ring",
        "gradients",
        "memory",
        "compute",
        "exchange",
        "gradients",
        "step",
        "efficiency"
    );
    for &tokens in &options.tokens {
        for &ranks in &options.ranks {
            row(
                tokens,
                ranks,
                &predictor.predict(tokens, ranks, &rates)?,
                budget,
            );
        }
    }
    say!();
    say!("packed     bytes received for attention: keys and values of every rate-th token");
    say!(
        "dense      were those of all tokens of the same segments gathered, once for all branches"
    );
    say!("ring       were those of the whole sequence passed round");
    say!("gradients  bytes received, and seconds, while those of the parameters are summed");
    say!(
        "memory     with * where it is more than the budget of {} GiB",
        options.budget
    );
    Ok(())
}

fn row(tokens: usize, ranks: usize, step: &StepPrediction, budget: u64) {
    let mark = if step.device_bytes > budget { "*" } else { " " };
    say!(
        "{tokens:>11} {ranks:>6} {:>10} {:>10} {:>10} {:>10} {:>10}{mark} {:>10} {:>10} {:>10} {:>10} {:>8.1} %",
        bytes(step.received_bytes),
        bytes(step.dense_bytes),
        bytes(step.ring_bytes),
        bytes(step.reduced_bytes),
        bytes(step.device_bytes),
        seconds(step.compute_seconds),
        seconds(step.exchange_seconds),
        seconds(step.reduction_seconds),
        seconds(step.seconds()),
        100.0 * step.efficiency,
    );
}

/// Three digits and a unit.
fn bytes(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    number(value, units[unit])
}

fn seconds(seconds: f64) -> String {
    match seconds {
        0.0 => number(0.0, "s"),
        ..1e-3 => number(seconds * 1e6, "us"),
        ..1.0 => number(seconds * 1e3, "ms"),
        _ => number(seconds, "s"),
    }
}

fn number(value: f64, unit: &str) -> String {
    let digits = match value {
        0.0 => 0,
        ..10.0 => 2,
        ..100.0 => 1,
        _ => 0,
    };
    format!("{value:.digits$} {unit}")
}
