//! What a call will do, before it does it: `cargo run --release --example plan`.

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, value_parser};
use dilated_attention::tuning::{self, TuneOptions};
use dilated_attention::{
    AttentionShape, CacheFolder, ContextOptions, DType, DeviceCaps, DilatedAttention,
    DilatedAttentionConfig, Mask, wgpu,
};
use program::say;

/// Prints the plan of a forward: dispatches, windows, bytes and work, and which kernel was chosen and why; needs no GPU
#[derive(Parser)]
struct Options {
    /// Sequences
    #[arg(long, value_name = "B", default_value_t = 1)]
    batch: usize,
    /// Length of each
    #[arg(long, value_name = "N", default_value_t = 65_536)]
    tokens: usize,
    /// Heads
    #[arg(long, value_name = "H", default_value_t = 8)]
    heads: usize,
    /// Elements of a head
    #[arg(long, value_name = "D", default_value_t = 64)]
    head_dim: usize,
    /// Segment length of each branch
    #[arg(
        long,
        value_name = "W,..",
        value_delimiter = ',',
        default_value = "2048,4096,8192,16384,32768"
    )]
    segments: Vec<usize>,
    /// Dilation rate of each branch
    #[arg(
        long,
        value_name = "R,..",
        value_delimiter = ',',
        default_value = "1,2,4,6,12"
    )]
    rates: Vec<usize>,
    /// No token attends to later ones
    #[arg(long)]
    causal: bool,
    /// As weights that were trained with torchscale expect
    #[arg(long)]
    torchscale: bool,
    /// Tensors in half precision
    #[arg(long)]
    f16: bool,
    /// Largest binding of the device that is planned for [default: WebGPU's]
    #[arg(long, value_name = "MIB", value_parser = value_parser!(u64).range(..=u64::MAX >> 20))]
    binding_mib: Option<u64>,
    /// Largest buffer of that device [default: WebGPU's]
    #[arg(long, value_name = "MIB", value_parser = value_parser!(u64).range(..=u64::MAX >> 20))]
    buffer_mib: Option<u64>,
    /// The plan of the backward, too
    #[arg(long)]
    backward: bool,
    /// For this machine's adapter, with the kernels that were measured on it
    #[arg(long)]
    here: bool,
    /// Measures them first, for so long, and remembers what it finds; as --here otherwise
    #[arg(long, value_name = "SECONDS")]
    tune: Option<u64>,
}

fn main() -> ExitCode {
    program::run(run)
}

fn run(options: Options) -> Result<(), Box<dyn Error>> {
    let dtype = match options.f16 {
        true => DType::F16,
        false => DType::F32,
    };
    let mut config = DilatedAttentionConfig::new(
        options.heads,
        options.head_dim,
        &options.segments,
        &options.rates,
    )?;
    if options.torchscale {
        config = config.with_torchscale();
    }
    if options.causal {
        config = config.with_mask(Mask::Causal);
    }
    let shape = AttentionShape::new(options.batch, options.tokens)?;
    say!("{config}");
    let (forward, of_backward) = if options.here || options.tune.is_some() {
        let context = ContextOptions::new()
            .with_cache(CacheFolder::User)
            .open_blocking()?;
        if let Some(seconds) = options.tune {
            let tune = TuneOptions {
                budget: Duration::from_secs(seconds),
                backward: options.backward,
                again: true,
            };
            say!("{}", tuning::tune(&context, &config, &tune)?);
        }
        let attention = DilatedAttention::new(&context, config)?;
        (
            attention.plan(&shape, dtype)?,
            attention.plan_backward(&shape, dtype)?,
        )
    } else {
        let mut limits = wgpu::Limits::default();
        if let Some(mib) = options.binding_mib {
            limits.max_storage_buffer_binding_size = mib << 20;
        }
        if let Some(mib) = options.buffer_mib {
            limits.max_buffer_size = mib << 20;
        }
        let caps = DeviceCaps::from_limits(&limits)?;
        let of_backward = config.plan_backward(&shape, dtype, &caps)?;
        (config.plan_forward(&shape, dtype, &caps)?, of_backward)
    };
    say!("{forward}");
    if options.backward {
        say!("{of_backward}");
    }
    Ok(())
}
