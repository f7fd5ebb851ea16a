//! Encodes a slide with GigaPath's slide encoder.
//!
//! ```text
//! gigapath_encode WEIGHTS.safetensors TILES [COORDS.npy] [OPTIONS]
//! gigapath_encode [WEIGHTS.safetensors] --random TILES [OPTIONS]
//! ```
//! as `cargo run --release --example gigapath_encode -- ...`, with `--features slide-files/h5` for HDF5.
//!
//! WEIGHTS is a checkpoint of GigaPath's slide encoder, GigaPath-Flash's or one like them: layers, width and features of a tile
//! are what its shapes say; `checkpoint.py` beside this file converts one of PyTorch, or makes one to try. TILES holds `features` (tiles, 1536) and `coords` (tiles, 2), the place of
//! each tile in pixels of level 0: `.safetensors`, `.npz`, `.h5` as CLAM and TRIDENT write it, or `.npy` with the coordinates
//! in a second one. `--random` draws so many tiles, and weights where none are given: to see what a slide takes here.
//!
//! ```text
//! --tile-size N       edge of a tile in pixels of level 0, where the file does not say it, see below
//! --force-tile-size N the same, whatever file and coordinates say
//! --any-encoder       take features that the file says another encoder than GigaPath's computed
//! --pool mean|cls     which embedding is the result: that of the tiles' mean (default) or of the CLS token, see below
//! --layers all        embeddings of every state, too: the first layer's input, then each layer's output
//! --tiles             embeddings of all tiles, too
//! --attention LAYER   attention of CLS to the tiles in this layer, from 0 on, too; mind `--pool` below
//! --prefix P          what stands before the names in WEIGHTS (`module.`), where there are several such prefixes
//! --heads N           of the model; published ones have 16, and a width of their own (384, 768, 1024, 1536)
//! --allow-nonfinite   save results that are infinite or NaN, too, instead of saying where they arise
//! --compat            what upstream's forward returns, and no more, see below
//! --out FILE          .npy for the result alone or .safetensors for all (default slide_embedding.safetensors)
//! --f16               activations in half precision
//! --max-wsi-size N    segment lengths for slides of this edge (default 262144)
//! --masked            padding is masked: for models that were not trained with torchscale
//! --budget MIB        refuse when the pool would hold more
//! --slice MS          time of the device a submission may take (default 8)
//! --depth N           layers of drawn weights (default 12)
//! --size NAME         sizes of drawn weights: base (default), flash, large or wide
//! ```
//!
//! **Coordinates** are pixels of level 0, the slide as it was scanned: tiles of 256 pixels at 20x lie 256 apart on a slide
//! scanned at 20x and 512 on one scanned at 40x, and the position of a tile in the model is `floor(coordinate / tile size)`. The
//! size comes from what the file says: TRIDENT's `patch_size_level0`, or CLAM's `patch_size`, `patch_level` and `downsample`, as
//! attributes in `.h5`, metadata in `.safetensors`, arrays of one number in `.npz`. Where it says nothing it is 256. What
//! contradicts the file or the coordinates is an error.
//!
//! **`--pool`.** The result is the norm of the mean of all tiles, which is how the model's authors use it: the CLS token was not
//! trained in the published weights, as they say. `--pool cls` is for weights that were fine-tuned with it. The attention of an
//! untrained CLS (`--attention`) says nothing of which tiles matter.
//!
//! **Results.** `.npy` holds the embedding, (width). `.safetensors` holds `embedding`, both embeddings as `cls` and `pool`, and
//! where asked for `layers_cls` and `layers_pool` (states, width), `tiles` (tiles, width), and `attention.LAYER` (tiles).
//!
//! **Time.** The plan that is printed first tells the time where a run before has measured the kernels on this adapter; that is
//! kept in the user's folder for caches (`DILATED_ATTENTION_CACHE=off`, or a path).
//!
//! **`--compat`** is for what reads results of prov-gigapath. Its `forward` returns a list of (1, width): one element, or with
//! `all_layer_embed` (here `--layers all`) one for each state; its `global_pool=True` is `--pool mean`, the default here, its
//! own default `--pool cls`. `.npy` holds that list
//! stacked, (1, 1, width) or (states, 1, width). `.safetensors` holds `embedding`, (1, width), or under the names that upstream's
//! `run_inference_with_slide_encoder` gives them `layer_0_embed`, ... and `last_layer_embed`, which is the last state again.
//! Mind that upstream's states lack the encoder's last norm: `last_layer_embed` is not the embedding of a call without
//! `all_layer_embed`. Their computation is upstream's in either case, unless `--masked` says otherwise.

mod resident;
mod results;
mod settings;

use std::error::Error;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Instant;

use dilated_attention::models::gigapath::{Slide, SlideEncoder, SlideOutputs};
use dilated_attention::models::{NonFiniteResult, StagedModel};
use dilated_attention::nn::Parameters;
use dilated_attention::recorder::Progress;
use dilated_attention::{Context, WeightFile, WeightSource};
use program::{Arguments, say, say_part};

use settings::Settings;

fn main() -> ExitCode {
    program::run(include_str!("main.rs"), run)
}

fn run(arguments: Arguments) -> Result<(), Box<dyn Error>> {
    let start = Instant::now();
    let settings = Settings::from_arguments(arguments)?;
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
    let context = Context::headless()?;
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
    let plan = SlideEncoder::plan_for(&context, &config, &[tiles.count()], &settings.outputs)?;
    say_part!("{plan}");
    if let Some(budget_bytes) = settings.budget_bytes {
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
    resident::print(&context, settings.weights.as_deref());
    drop(checkpoint);
    context.pool().force_trim();
    context.pool().reset_peaks();

    let begin = Instant::now();
    let (mut shown, is_terminal) = (-1, std::io::stdout().is_terminal());
    let show = |progress: Progress| {
        let percent = (100.0 * progress.fraction()) as i32;
        if percent > shown && is_terminal {
            shown = percent;
            let bar = "#".repeat(percent as usize / 4);
            say_part!("\r[{bar:<25}] {percent:3} %");
        }
    };
    let encoded = encoder
        .run(&context, &weights, &slides, &settings.outputs)
        .and_then(|run| pollster::block_on(run.in_slices(settings.slices, show)));
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
    if is_terminal {
        say!();
    }
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
    results::save(&output, &settings)?;
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
        .and_then(|run| pollster::block_on(run.find_nonfinite(settings.slices)));
    match origin {
        Ok(Some(origin)) => format!("{result}. It begins with {origin}. {NOTHING}").into(),
        Ok(None) => {
            format!("{result}. All states are finite: it is the last norm. {NOTHING}").into()
        }
        Err(error) => format!("{result}. Where is not known: {error}. {NOTHING}").into(),
    }
}
