//! Training of a byte-level LongNet, from bytes to a model that writes: `cargo run --release --example train_lm`. With `--ranks`, in
//! threads with a device each; `examples/mpi` has the same for processes.

mod baselines;
mod curve;
mod data;
mod settings;
mod text;
mod training;

use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use clap::Parser;
use dilated_attention::distributed::in_process;

use program::Result;
use training::{Options, train, train_on_ranks};

/// Longer than the first rank alone takes to measure and to save.
const TIMEOUT: Duration = Duration::from_secs(3600);

/// Trains a byte-level LongNet on real text, from nothing, and lets it write
///
/// The last tenth of the bytes is for validation. The bits a byte on that are compared with what counting achieves on the
/// same split: the entropy of single bytes, and a model of the three bytes before.
#[derive(Parser)]
#[command(verbatim_doc_comment)]
struct Program {
    #[command(flatten)]
    options: Options,
    /// Ranks that train together, in threads with a device each
    #[arg(long, value_name = "P")]
    ranks: Option<NonZeroUsize>,
}

fn main() -> ExitCode {
    program::run(run)
}

fn run(Program { options, ranks }: Program) -> Result<()> {
    let Some(ranks) = ranks else {
        options.expect_ranks(1)?;
        return train(&options);
    };
    options.expect_ranks(ranks.get())?;
    thread::scope(|scope| {
        let of_rank = |group| {
            let options = &options;
            let train = move || {
                // Errors of threads are told by this one.
                train_on_ranks(options, &Arc::new(group)).map_err(|error| error.to_string())
            };
            scope.spawn(train)
        };
        let threads: Vec<_> = in_process(ranks.get(), TIMEOUT)
            .into_iter()
            .map(of_rank)
            .collect();
        let results = threads.into_iter().map(|thread| thread.join());
        let results =
            results.map(|result| result.unwrap_or_else(|_| Err("it panicked".to_owned())));
        let results: Vec<_> = results.collect();
        for (rank, result) in results.into_iter().enumerate() {
            result.map_err(|error| format!("rank {rank}: {error}"))?;
        }
        Ok(())
    })
}
