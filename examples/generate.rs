//! Loads a checkpoint that the example train_lm wrote and lets the model write on, each byte as soon as it is there.
//!
//! ```text
//! cargo run --release --example generate -- [CHECKPOINT] [--prompt TEXT] [--bytes N] [--temperature T] [--seed S]
//! ```
//!
//! The default checkpoint is target/train_lm/checkpoint.safetensors. Temperature 0 takes the likeliest byte each time.

#[path = "train_lm/generation.rs"]
mod generation;
#[path = "train_lm/settings.rs"]
mod settings;

use std::error::Error;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use dilated_attention::Context;
use dilated_attention::longnet::LongNet;
use dilated_attention::weights::WeightFile;

use generation::{Sampling, continue_text, printable};
use program::{Arguments, say, say_part};
use settings::Settings;

fn main() -> ExitCode {
    program::run(include_str!("generate.rs"), run)
}

fn run(mut arguments: Arguments) -> Result<(), Box<dyn Error>> {
    let mut path = PathBuf::from("target/train_lm/checkpoint.safetensors");
    let (mut prompt, mut count) = (b"fn ".to_vec(), 400usize);
    let mut sampling = Sampling {
        temperature: 0.8,
        seed: 1,
    };
    while let Some(argument) = arguments.next_argument()? {
        match argument.option() {
            // Any bytes: they are the model's tokens.
            Some("--prompt") => prompt = arguments.os_value()?.into_encoded_bytes(),
            Some("--bytes") => count = arguments.value()?,
            Some("--temperature") => sampling.temperature = arguments.value()?,
            Some("--seed") => sampling.seed = arguments.value()?,
            Some(_) => return Err(arguments.unknown()),
            None => path = argument.into_path(),
        }
    }
    if prompt.is_empty() {
        return Err("--prompt needs at least one byte to go on from".into());
    }
    let file = WeightFile::open(&path)?;
    let settings = Settings::from_metadata(file.metadata())?;
    say!("model: {settings}\n");
    let context = Context::headless()?;
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
        count,
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
    let rest = count.saturating_sub(1);
    say!(
        "\n\nfirst byte after {:.2} s, then {:.1} bytes per second on {}",
        first.as_secs_f64(),
        rest as f64 / seconds.max(1e-9),
        context.adapter_info().name
    );
    Ok(())
}
