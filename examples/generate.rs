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
use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;

use dilated_attention::Context;
use dilated_attention::longnet::LongNet;
use dilated_attention::weights::WeightFile;

use generation::{Sampling, continue_text, printable};
use settings::{Settings, parse};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let mut path = "target/train_lm/checkpoint.safetensors".to_owned();
    let (mut prompt, mut count) = ("fn ".to_owned(), 400usize);
    let mut sampling = Sampling {
        temperature: 0.8,
        seed: 1,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || {
            let missing = format!("{argument} needs a value");
            arguments.next().ok_or(missing)
        };
        match argument.as_str() {
            "--prompt" => prompt = value()?,
            "--bytes" => count = parse(&value()?)?,
            "--temperature" => sampling.temperature = parse(&value()?)?,
            "--seed" => sampling.seed = parse(&value()?)?,
            other if other.starts_with('-') => {
                return Err(format!(
                    "unknown option {other}; the options are in the file's first lines"
                )
                .into());
            }
            _ => path = argument,
        }
    }
    if prompt.is_empty() {
        return Err("--prompt needs at least one byte to go on from".into());
    }
    let file = WeightFile::open(&path)?;
    let settings = Settings::from_metadata(file.metadata())?;
    println!("model: {settings}\n");
    let context = Context::headless()?;
    let model = LongNet::new(&context, settings.config()?)?;
    let weights = file.part("weights.").load(&context, model.parameters())?;

    print!("{}", printable(prompt.as_bytes()));
    let started = Instant::now();
    let mut first = None;
    // Bytes of a character that is not complete yet.
    let mut pending = Vec::new();
    continue_text(
        &context,
        (&model, &weights),
        prompt.as_bytes(),
        count,
        sampling,
        |byte| {
            first.get_or_insert_with(|| started.elapsed());
            pending.push(byte);
            let incomplete = std::str::from_utf8(&pending)
                .is_err_and(|error| error.error_len().is_none() && pending.len() < 4);
            if !incomplete {
                print!("{}", printable(&pending));
                // A closed output is no reason to fail.
                let _ = std::io::stdout().flush();
                pending.clear();
            }
        },
    )?;
    let (all, first) = (started.elapsed(), first.unwrap_or_default());
    let seconds = (all - first).as_secs_f64();
    let rest = count.saturating_sub(1);
    println!(
        "\n\nfirst byte after {:.2} s, then {:.1} bytes per second on {}",
        first.as_secs_f64(),
        rest as f64 / seconds.max(1e-9),
        context.adapter_info().name
    );
    Ok(())
}
