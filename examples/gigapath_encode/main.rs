//! Encodes a slide with GigaPath's slide encoder.
//!
//! ```text
//! gigapath_encode WEIGHTS.safetensors TILES [COORDS.npy] [OPTIONS]
//! gigapath_encode [WEIGHTS.safetensors] --random TILES [OPTIONS]
//! ```
//! as `cargo run --release --example gigapath_encode -- ...`, with `--features slide-files/h5` for HDF5.
//!
//! WEIGHTS is a checkpoint of the published architecture, 768, 1024 or 1536 wide, of any depth; `checkpoint.py` beside this
//! file converts one of PyTorch, or makes one to try. TILES holds `features` (tiles, 1536) and `coords` (tiles, 2), the place of
//! each tile in pixels of level 0: `.safetensors`, `.npz`, `.h5` as CLAM and TRIDENT write it, or `.npy` with the coordinates
//! in a second one. `--random` draws so many tiles, and weights where none are given: to see what a slide takes here.
//!
//! ```text
//! --pool cls|mean     which embedding is the result: that of the CLS token (default) or of the tiles' mean
//! --layers all        embeddings of every state, too: the first layer's input, then each layer's output
//! --tiles             embeddings of all tiles, too
//! --attention LAYER   attention of CLS to the tiles in this layer, from 0 on, too
//! --compat            what upstream's forward returns, and no more, see below
//! --out FILE          .npy for the result alone or .safetensors for all (default slide_embedding.safetensors)
//! --f16               activations in half precision
//! --max-wsi-size N    segment lengths for slides of this edge (default 262144)
//! --masked            padding is masked: for models that were not trained with torchscale
//! --budget MIB        refuse when the pool would hold more
//! --slice MS          time of the device a submission may take (default 8)
//! --depth N           layers of drawn weights (default 12)
//! --size NAME         sizes of drawn weights: base (default), large or wide
//! ```
//!
//! **Results.** `.npy` holds the embedding, (width). `.safetensors` holds `embedding`, both embeddings as `cls` and `pool`, and
//! where asked for `layers_cls` and `layers_pool` (states, width), `tiles` (tiles, width), and `attention.LAYER` (tiles).
//!
//! **Time.** The plan that is printed first tells the time where a run before has measured the kernels on this adapter; that is
//! kept in the user's folder for caches (`DILATED_ATTENTION_CACHE=off`, or a path).
//!
//! **`--compat`** is for what reads results of prov-gigapath. Its `forward` returns a list of (1, width): one element, or with
//! `all_layer_embed` (here `--layers all`) one for each state; its `global_pool` is `--pool mean` here. `.npy` holds that list
//! stacked, (1, 1, width) or (states, 1, width). `.safetensors` holds `embedding`, (1, width), or under the names that upstream's
//! `run_inference_with_slide_encoder` gives them `layer_0_embed`, ... and `last_layer_embed`, which is the last state again.
//! Mind that upstream's states lack the encoder's last norm: `last_layer_embed` is not the embedding of a call without
//! `all_layer_embed`. Their computation is upstream's in either case, unless `--masked` says otherwise.

mod checkpoint;
mod resident;
mod results;
mod settings;

use std::error::Error;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Instant;

use dilated_attention::models::gigapath::{Slide, SlideEncoder};
use dilated_attention::{Context, WeightFile};

use settings::Settings;

fn main() -> ExitCode {
    match run(Instant::now()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(start: Instant) -> Result<(), Box<dyn Error>> {
    if std::env::args().any(|argument| argument == "--help") {
        // What stands above.
        let lines = include_str!("main.rs").lines();
        lines
            .map_while(|line| line.strip_prefix("//!"))
            .for_each(|line| println!("{}", line.strip_prefix(' ').unwrap_or(line)));
        return Ok(());
    }
    let settings = Settings::from_arguments(std::env::args().skip(1))?;
    let checkpoint = match &settings.weights {
        Some(path) => Some(WeightFile::open(path)?),
        None => None,
    };
    let config = settings.config(checkpoint.as_ref())?;
    let context = Context::headless()?;
    let adapter = context.adapter_info();
    println!(
        "adapter     {}, {} {}",
        adapter.name, adapter.driver, adapter.driver_info
    );
    let tiles = settings.tiles(&config)?;
    let slides = [Slide {
        features: &tiles.features,
        coords: &tiles.coords,
    }];
    let plan = SlideEncoder::plan_for(&context, &config, &[tiles.count()], &settings.outputs)?;
    print!("{plan}");
    if let Some(budget_bytes) = settings.budget_bytes {
        plan.check_budget(budget_bytes)?;
        context.pool().set_budget_bytes(Some(budget_bytes));
    }
    let begin = Instant::now();
    let encoder = SlideEncoder::new(&context, config)?;
    let weights = match &checkpoint {
        Some(file) => encoder.load(&context, file)?,
        None => {
            let mut recorder = context.recorder("weights");
            let weights = encoder.initial_weights(&mut recorder, 1)?;
            recorder.submit()?;
            weights
        }
    };
    context.wait()?;
    println!(
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
    let show = |part: f64| {
        let percent = (100.0 * part) as i32;
        if percent > shown && is_terminal {
            shown = percent;
            let bar = "#".repeat(percent as usize / 4);
            print!("\r[{bar:<25}] {percent:3} %");
            // A progress bar that cannot be shown is no reason to stop.
            let _ = std::io::stdout().flush();
        }
    };
    let (slices, outputs) = (settings.slices, &settings.outputs);
    let output =
        pollster::block_on(encoder.encode(&context, &weights, &slides, outputs, slices, show))?;
    let seconds = begin.elapsed().as_secs_f64();
    let stats = context.pool().stats();
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    if is_terminal {
        println!();
    }
    println!(
        "encoded     {seconds:.2} s, {:.1} GFLOP/s; pool at most {:.1} MiB asked for, {:.1} MiB held",
        plan.flop as f64 / 1e9 / seconds,
        mib(stats.requested_bytes.peak),
        mib(stats.held_bytes.peak),
    );
    // The next run's plan tells the time. Without a folder for that it does not.
    context.save_pace();
    results::save(&output, &settings)?;
    println!("saved       {}", settings.out.display());
    Ok(())
}
