//! Text from a model that the example `train_lm` trained, through the incremental decoder:
//! `cargo run --release --example generate`.

#[path = "train_lm/settings.rs"]
mod settings;
#[path = "train_lm/text.rs"]
mod text;

use std::error::Error;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use dilated_attention::Context;
use dilated_attention::longnet::{GenerateOptions, LongNet};
use dilated_attention::weights::WeightFile;

use program::{say, say_part};
use settings::Settings;
use text::{byte, printable, tokens};

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
    /// Draw from the K likeliest bytes alone
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Of the random numbers
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
}

fn main() -> ExitCode {
    program::run(run)
}

fn run(options: Options) -> Result<(), Box<dyn Error>> {
    let prompt = options.prompt.into_encoded_bytes();
    let mut sampling = GenerateOptions::new(options.bytes)
        .with_temperature(options.temperature)
        .with_seed(options.seed);
    sampling.top_k = options.top_k;
    let file = WeightFile::open(&options.checkpoint)?;
    let settings = Settings::from_metadata(file.metadata())?;
    say!("model: {settings}\n");
    let context = Context::new_blocking()?;
    let model = LongNet::new(&context, settings.config()?)?;
    let weights = file.part("weights.").load(&context, model.parameters())?;

    let generation = model.generate(&context, &weights, &tokens(&prompt), &sampling)?;
    say_part!("{}", printable(&prompt));
    let started = Instant::now();
    let (mut first, mut written) = (None, 0u32);
    // Bytes of a character that is not complete yet.
    let mut pending = Vec::new();
    // Text that nobody reads need not be written.
    for token in generation.take_while(|_| program::is_heard()) {
        pending.push(byte(token?));
        first.get_or_insert_with(|| started.elapsed());
        written += 1;
        let incomplete = std::str::from_utf8(&pending)
            .is_err_and(|error| error.error_len().is_none() && pending.len() < 4);
        if !incomplete {
            say_part!("{}", printable(&pending));
            pending.clear();
        }
    }
    let (all, first) = (started.elapsed(), first.unwrap_or_default());
    let seconds = (all - first).as_secs_f64();
    let rest = written.saturating_sub(1);
    say!(
        "\n\nfirst byte after {:.2} s, then {:.1} bytes per second on {}",
        first.as_secs_f64(),
        f64::from(rest) / seconds.max(1e-9),
        context.adapter_info().name
    );
    Ok(())
}
