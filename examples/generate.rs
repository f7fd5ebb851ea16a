//! Text from a model that the example `train_lm` trained, through the incremental decoder:
//! `cargo run --release --example generate`.

#[path = "train_lm/generation.rs"]
mod generation;
#[path = "train_lm/settings.rs"]
mod settings;

use std::error::Error;
use std::ffi::OsString;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use dilated_attention::Context;
use dilated_attention::longnet::LongNet;
use dilated_attention::weights::WeightFile;

use generation::{Sampling, continue_text, printable};
use program::{say, say_part};
use settings::Settings;

/// Loads a checkpoint that the example train_lm wrote and lets the model write on, each byte as soon as it is there
#[derive(Parser)]
struct Options {
    /// The model
    #[arg(default_value = "target/train_lm/checkpoint.safetensors")]
    checkpoint: PathBuf,
    // Any bytes: they are the model's tokens.
    /// What it goes on from
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "fn ",
        allow_hyphen_values = true
    )]
    prompt: OsString,
    /// How many bytes it writes
    #[arg(long, value_name = "N", default_value_t = 400)]
    bytes: usize,
    /// How far it strays from the likeliest byte; 0 takes that each time
    #[arg(long, value_name = "T", default_value_t = 0.8)]
    temperature: f32,
    /// Of the random numbers
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
}

fn main() -> ExitCode {
    program::run(run)
}

fn run(options: Options) -> Result<(), Box<dyn Error>> {
    let prompt = options.prompt.into_encoded_bytes();
    if prompt.is_empty() {
        return Err("--prompt needs at least one byte to go on from".into());
    }
    let sampling = Sampling {
        temperature: options.temperature,
        seed: options.seed,
    };
    let file = WeightFile::open(&options.checkpoint)?;
    let settings = Settings::from_metadata(file.metadata())?;
    say!("model: {settings}\n");
    let context = Context::new_blocking()?;
    let model = LongNet::new(&context, settings.config()?)?;
    let weights = file.part("weights.").load(&context, model.parameters())?;

    say_part!("{}", printable(&prompt));
    let started = Instant::now();
    let mut first = None;
    // Bytes of a character that is not complete yet.
    let mut pending = Vec::new();
    continue_text(
        &context,
        (&model, &weights),
        &prompt,
        options.bytes,
        sampling,
        |byte| {
            first.get_or_insert_with(|| started.elapsed());
            pending.push(byte);
            let incomplete = std::str::from_utf8(&pending)
                .is_err_and(|error| error.error_len().is_none() && pending.len() < 4);
            if !incomplete {
                say_part!("{}", printable(&pending));
                pending.clear();
            }
            // Text that nobody reads need not be written.
            match program::is_heard() {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            }
        },
    )?;
    let (all, first) = (started.elapsed(), first.unwrap_or_default());
    let seconds = (all - first).as_secs_f64();
    let rest = options.bytes.saturating_sub(1);
    say!(
        "\n\nfirst byte after {:.2} s, then {:.1} bytes per second on {}",
        first.as_secs_f64(),
        rest as f64 / seconds.max(1e-9),
        context.adapter_info().name
    );
    Ok(())
}
