//! Prints the plan of a forward: dispatches, windows, bytes and work, and which kernel was chosen and why. Needs no GPU.
//!
//! ```text
//! cargo run --release --example plan -- [--batch B] [--tokens N] [--heads H] [--head-dim D] [--segments w,w,..]
//!     [--rates r,r,..] [--causal] [--torchscale] [--binding-mib M] [--buffer-mib M] [--backward] [--here] [--tune SECONDS]
//! ```
//!
//! `--backward` prints the plan of the backward, too. `--here` plans for this machine's adapter, with the kernels that were
//! measured on it; `--tune` measures them first and remembers what it finds.

use std::error::Error;
use std::str::FromStr;
use std::time::Duration;

use dilated_attention::tuning::TuneOptions;
use dilated_attention::{
    AttentionShape, Context, DeviceFacts, DilatedAttention, DilatedAttentionConfig, Mask,
};

fn main() -> Result<(), Box<dyn Error>> {
    let (mut batch, mut tokens, mut heads, mut head_dim) = (1u32, 65_536u32, 8u32, 64u32);
    let mut segments = vec![2048, 4096, 8192, 16_384, 32_768];
    let mut rates = vec![1, 2, 4, 6, 12];
    let (mut causal, mut torchscale) = (false, false);
    let (mut backward, mut here, mut tune) = (false, false, None);
    let mut facts = DeviceFacts::webgpu_defaults();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || {
            let missing = format!("{argument} needs a value");
            arguments.next().ok_or(missing)
        };
        match argument.as_str() {
            "--batch" => batch = parse(&value()?)?,
            "--tokens" => tokens = parse(&value()?)?,
            "--heads" => heads = parse(&value()?)?,
            "--head-dim" => head_dim = parse(&value()?)?,
            "--segments" => segments = list(&value()?)?,
            "--rates" => rates = list(&value()?)?,
            "--causal" => causal = true,
            "--torchscale" => torchscale = true,
            "--backward" => backward = true,
            "--here" => here = true,
            "--tune" => (here, tune) = (true, Some(Duration::from_secs(parse(&value()?)?))),
            "--binding-mib" => facts.max_binding_bytes = parse::<u64>(&value()?)? << 20,
            "--buffer-mib" => facts.max_buffer_bytes = parse::<u64>(&value()?)? << 20,
            other => {
                return Err(format!(
                    "unknown option {other}; the options are in the file's first lines"
                )
                .into());
            }
        }
    }
    let mut config = DilatedAttentionConfig::new(heads, head_dim, &segments, &rates)?;
    if torchscale {
        config = config.torchscale();
    }
    if causal {
        config = config.mask(Mask::Causal);
    }
    let shape = AttentionShape::new(batch, tokens)?;
    println!("{config}");
    let (forward, of_backward) = if here {
        let context = Context::headless()?;
        if let Some(budget) = tune {
            let options = TuneOptions {
                budget,
                backward,
                again: true,
            };
            println!("{}", context.tune(&config, &options)?);
        }
        let attention = DilatedAttention::new(&context, config)?;
        (attention.plan(&shape)?, attention.plan_backward(&shape)?)
    } else {
        let of_backward = config.plan_backward(&shape, &facts)?;
        (config.plan_forward(&shape, &facts)?, of_backward)
    };
    println!("{forward}");
    if backward {
        println!("{of_backward}");
    }
    Ok(())
}

fn parse<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse()
        .map_err(|_| format!("'{text}' is not a number in range"))
}

fn list(text: &str) -> Result<Vec<u32>, String> {
    text.split(',').map(parse).collect()
}
