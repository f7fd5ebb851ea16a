//! A long computation beside a program that goes on: an own device, slices submitted from a thread, progress, a new target under
//! way, and a run that is cancelled.
//!
//! The thread blocks on a future here; a task of any executor would do. The device is polled without ever blocking it.

use std::error::Error;
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use clap::Parser;
use dilated_attention::{
    Context, DType, DilatedAttention, DilatedAttentionConfig, Download, Progress, Result,
    SliceOptions, SlicedSubmission,
};
use indicatif::ProgressBar;
use program::say;

const TOKENS: usize = 4096;

/// Computes in slices on a thread while the program goes on, with progress, then again, given up half way
#[derive(Parser)]
struct Options {}

/// Records attention over attention, a few times.
fn record(
    context: &Context,
    attention: &DilatedAttention,
) -> Result<(SlicedSubmission, Download<f32>)> {
    let dims = [1, TOKENS, 4, 32];
    let data: Vec<f32> = (0..dims.iter().product())
        .map(|i: usize| ((i * 31) % 97) as f32 / 48.0 - 1.0)
        .collect();
    let mut recorder = context.recorder("layers");
    let mut x = recorder.upload("x", &dims, &data)?;
    for _ in 0..3 {
        x = attention.forward(&mut recorder, &x, &x, &x)?.out;
    }
    let result = recorder.download(&x)?;
    Ok((recorder.submit_in_slices(SliceOptions::default()), result))
}

fn main() -> ExitCode {
    program::run(run)
}

fn run(_: Options) -> std::result::Result<(), Box<dyn Error>> {
    let context = Context::new_blocking()?;
    say!("adapter: {}", context.adapter_info().name);
    let config = DilatedAttentionConfig::new(4, 32, &[256, 1024], &[1, 4])?;
    let attention = DilatedAttention::new(&context, config)?;
    attention.warm_up(DType::F32)?;

    let (mut sliced, result) = record(&context, &attention)?;
    let (sender, receiver) = mpsc::channel::<Progress>();
    let begin = Instant::now();
    let worker = std::thread::spawn(move || {
        pollster::block_on(async move {
            sliced
                .run(|progress| {
                    // That nobody listens any more is no reason to stop.
                    let _ = sender.send(progress);
                })
                .await?;
            Ok::<_, dilated_attention::Error>((result.await?, sliced.num_slices()))
        })
    });
    // The program's own thread shows how far it is.
    let bar = ProgressBar::new(100);
    for progress in receiver {
        bar.set_position((100.0 * progress.fraction()) as u64);
    }
    bar.finish_and_clear();
    let (out, num_slices) = worker.join().map_err(|_| "the worker panicked")??;
    program::expect_finite("the result", &out)?;
    let seconds = begin.elapsed().as_secs_f64();
    say!(
        "first value {} after {seconds:.2} s in {num_slices} slices",
        out[0]
    );

    // Again, in shorter slices, and given up half way: its memory serves the next.
    let (mut sliced, result) = record(&context, &attention)?;
    sliced.set_target(Duration::from_millis(4));
    while pollster::block_on(sliced.step())?.fraction() < 0.5 {}
    say!("given up after {} slices", sliced.num_slices());
    sliced.cancel();
    if let Err(error) = result.wait() {
        say!("{error}");
    }
    drop(result);
    context.wait()?;
    say!("{}", context.pool().stats());
    Ok(())
}
