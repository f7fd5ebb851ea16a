//! Prints the plan of a forward: dispatches, windows, bytes and work, and which kernel was chosen and why. Needs no GPU.
//!
//! ```text
//! cargo run --release --example plan -- [--batch B] [--tokens N] [--heads H] [--head-dim D] [--segments w,w,..]
//!     [--rates r,r,..] [--causal] [--torchscale] [--f16] [--binding-mib M] [--buffer-mib M] [--backward] [--here]
//!     [--tune SECONDS]
//! ```
//!
//! `--backward` prints the plan of the backward, too. `--here` plans for this machine's adapter, with the kernels that were
//! measured on it; `--tune` measures them first and remembers what it finds.

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use dilated_attention::tuning::{self, TuneOptions};
use dilated_attention::{
    AttentionShape, Context, DType, DeviceCaps, DilatedAttention, DilatedAttentionConfig, Mask,
};
use program::{Arguments, say};

fn main() -> ExitCode {
    program::run(include_str!("plan.rs"), run)
}

fn run(mut arguments: Arguments) -> Result<(), Box<dyn Error>> {
    let (mut batch, mut tokens, mut heads, mut head_dim) = (1usize, 65_536usize, 8usize, 64usize);
    let mut segments = vec![2048, 4096, 8192, 16_384, 32_768];
    let mut rates = vec![1, 2, 4, 6, 12];
    let (mut causal, mut torchscale) = (false, false);
    let mut dtype = DType::F32;
    let (mut backward, mut here, mut tune) = (false, false, None);
    let mut caps = DeviceCaps::webgpu_defaults();
    while let Some(argument) = arguments.next_argument()? {
        match argument.option() {
            Some("--batch") => batch = arguments.value()?,
            Some("--tokens") => tokens = arguments.value()?,
            Some("--heads") => heads = arguments.value()?,
            Some("--head-dim") => head_dim = arguments.value()?,
            Some("--segments") => segments = arguments.list()?,
            Some("--rates") => rates = arguments.list()?,
            Some("--causal") => causal = true,
            Some("--f16") => dtype = DType::F16,
            Some("--torchscale") => torchscale = true,
            Some("--backward") => backward = true,
            Some("--here") => here = true,
            Some("--tune") => (here, tune) = (true, Some(Duration::from_secs(arguments.value()?))),
            Some("--binding-mib") => caps.max_binding_bytes = arguments.value::<u64>()? << 20,
            Some("--buffer-mib") => caps.max_buffer_bytes = arguments.value::<u64>()? << 20,
            Some(_) => return Err(arguments.unknown()),
            None => {
                let more = argument.into_path();
                return Err(format!("plan takes options only, not {}", more.display()).into());
            }
        }
    }
    let mut config = DilatedAttentionConfig::new(heads, head_dim, &segments, &rates)?;
    if torchscale {
        config = config.torchscale();
    }
    if causal {
        config = config.with_mask(Mask::Causal);
    }
    let shape = AttentionShape::new(batch, tokens)?;
    say!("{config}");
    let (forward, of_backward) = if here {
        let context = Context::headless()?;
        if let Some(budget) = tune {
            let options = TuneOptions {
                budget,
                backward,
                again: true,
            };
            say!("{}", tuning::tune(&context, &config, &options)?);
        }
        let attention = DilatedAttention::new(&context, config)?;
        (
            attention.plan(&shape, dtype)?,
            attention.plan_backward(&shape, dtype)?,
        )
    } else {
        let of_backward = config.plan_backward(&shape, dtype, &caps)?;
        (config.plan_forward(&shape, dtype, &caps)?, of_backward)
    };
    say!("{forward}");
    if backward {
        say!("{of_backward}");
    }
    Ok(())
}
