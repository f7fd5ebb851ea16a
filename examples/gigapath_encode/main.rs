//! GigaPath's slide encoder as a program: plan, progress, time, peak bytes, results as files.
//! `cargo run --release --example gigapath_encode -- --help`, with `--features slide-files/h5` for HDF5.

mod resident;
mod results;
mod settings;

use std::error::Error;
use std::process::ExitCode;
use std::time::Instant;

use dilated_attention::models::gigapath::{Slide, SlideEncoder, SlideOutputs};
use dilated_attention::models::{NonFiniteResult, StagedModel};
use dilated_attention::nn::Parameters;
use dilated_attention::{CacheFolder, Context, ContextOptions, Progress, WeightFile, WeightSource};
use indicatif::{ProgressBar, ProgressStyle};
use program::{say, say_part};

use settings::Settings;

fn main() -> ExitCode {
    program::run(run)
}

fn run(settings: Settings) -> Result<(), Box<dyn Error>> {
    let start = Instant::now();
    let format = settings.format()?;
    let (outputs, slices) = (settings.outputs(), settings.slices());
    let checkpoint = match &settings.weights {
        Some(path) => Some(WeightFile::open(path)?),
        None => None,
    };
    let part = match &checkpoint {
        Some(file) => Some(settings.part(file)?),
        None => None,
    };
    let mut config = settings.config(part.as_ref())?;
    settings.say_model(&config, part.as_ref());
    // What was measured of the kernels is kept, so that the plan tells the time.
    let context = ContextOptions::new()
        .with_cache(CacheFolder::User)
        .open_blocking()?;
    let adapter = context.adapter_info();
    say!(
        "adapter     {}, {} {}",
        adapter.name,
        adapter.driver,
        adapter.driver_info
    );
    let (tiles, tile_size) = settings.tiles(&config)?;
    // Segment lengths stay those of the weights.
    config.tile_size = tile_size.pixels;
    say!("tile size   {tile_size}");
    let slides = [Slide {
        features: &tiles.features,
        coords: &tiles.coords,
    }];
    let plan = SlideEncoder::plan_for(&context, &config, &[tiles.count()], &outputs)?;
    say_part!("{plan}");
    if let Some(budget_bytes) = settings.budget_bytes() {
        plan.check_budget(budget_bytes)?;
        context.pool().set_budget_bytes(Some(budget_bytes));
    }
    let begin = Instant::now();
    let encoder = SlideEncoder::new(&context, config)?;
    let weights = load_or_draw(&context, &encoder, part)?;
    context.wait()?;
    say!(
        "weights     constructed and loaded in {:.2} s, {:.2} s after the start",
        begin.elapsed().as_secs_f64(),
        start.elapsed().as_secs_f64()
    );
    resident::print(&context);
    drop(checkpoint);
    context.pool().force_trim();
    context.pool().reset_peaks();

    let begin = Instant::now();
    let style = ProgressStyle::with_template("[{bar:40}] {percent:>3} %, {eta} left")?;
    let bar = ProgressBar::new(1000).with_style(style);
    let show = |progress: Progress| bar.set_position((1000.0 * progress.fraction()) as u64);
    let encoded = encoder
        .run(&context, &weights, &slides, &outputs)
        .and_then(|run| pollster::block_on(run.in_slices(slices, show)));
    bar.finish_and_clear();
    let output = match encoded {
        Err(dilated_attention::Error::NonFiniteResult(result)) => {
            return Err(not_finite(
                *result, &context, &encoder, &weights, &slides, &settings,
            ));
        }
        Err(error @ dilated_attention::Error::FeatureNotFinite { .. }) => {
            return Err(format!("{}: {error}", settings.tiles_name()).into());
        }
        output => output?,
    };
    let seconds = begin.elapsed().as_secs_f64();
    let stats = context.pool().stats();
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    say!(
        "encoded     {seconds:.2} s, {:.1} GFLOP/s; pool at most {:.1} MiB asked for, {:.1} MiB held",
        plan.flop as f64 / 1e9 / seconds,
        mib(stats.requested_bytes.peak),
        mib(stats.held_bytes.peak),
    );
    // The next run's plan tells the time. Without a folder for that it does not.
    context.save_cost_model();
    let lost = output
        .cls
        .iter()
        .chain(&output.pool)
        .filter(|value| !value.is_finite())
        .count();
    if lost > 0 {
        program::note(format_args!(
            "warning: {lost} values of the two embeddings are not finite"
        ));
    }
    results::save(&output, &settings, format)?;
    say!("saved       {}", settings.out.display());
    Ok(())
}

/// The weights of the checkpoint, or drawn ones.
fn load_or_draw(
    context: &Context,
    encoder: &SlideEncoder,
    checkpoint: Option<WeightSource<'_>>,
) -> dilated_attention::Result<Parameters> {
    match checkpoint {
        Some(part) => encoder.load(context, part),
        None => encoder.initial_weights(context, 1),
    }
}

/// The error about a result that is not finite, with where it arises: the slide is encoded once more to find that.
fn not_finite(
    result: NonFiniteResult,
    context: &Context,
    encoder: &SlideEncoder,
    weights: &Parameters,
    slides: &[Slide<'_>],
    settings: &Settings,
) -> Box<dyn Error> {
    const NOTHING: &str = "Nothing was saved; with --allow-nonfinite it is saved as it is";
    if result.origin.is_some_and(|origin| origin.token.is_some()) {
        return format!("{result}. {NOTHING}").into();
    }
    say!("\nnot finite  encoding once more to find where");
    let origin = encoder
        .run(context, weights, slides, &SlideOutputs::default())
        .and_then(|run| pollster::block_on(run.find_nonfinite(settings.slices())));
    match origin {
        Ok(Some(origin)) => format!("{result}. It begins with {origin}. {NOTHING}").into(),
        Ok(None) => {
            format!("{result}. All states are finite: it is the last norm. {NOTHING}").into()
        }
        Err(error) => format!("{result}. Where is not known: {error}. {NOTHING}").into(),
    }
}
