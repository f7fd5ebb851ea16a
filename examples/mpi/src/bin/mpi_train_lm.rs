//! The training of `train_lm` by processes: `mpiexec -n 4 mpi_train_lm --ranks-per-sequence 2`.

#[path = "../../../train_lm/baselines.rs"]
mod baselines;
#[path = "../../../train_lm/curve.rs"]
mod curve;
#[path = "../../../train_lm/data.rs"]
mod data;
#[path = "../../../train_lm/settings.rs"]
mod settings;
#[path = "../../../train_lm/text.rs"]
mod text;
#[path = "../../../train_lm/training.rs"]
#[expect(dead_code, reason = "train_lm trains on one device, too")]
mod training;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use dilated_attention_mpi::{Settings, run};

use training::{Options, train_on_ranks};

/// Trains a byte-level LongNet on real text with all processes together, as train_lm does with one
///
/// Every process reads the data. The first one measures and saves.
#[derive(Parser)]
#[command(verbatim_doc_comment)]
struct Program {
    #[command(flatten)]
    options: Options,
    /// Time-out of each call: longer than the first process alone takes to measure and to save
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    timeout: u32,
}

fn main() -> ExitCode {
    program::run(|Program { options, timeout }: Program| {
        let settings = Settings::new(Duration::from_secs(timeout.into()));
        Ok(run(settings, |group| {
            options.expect_ranks(group.size())?;
            train_on_ranks(&options, group)
        }))
    })
}
