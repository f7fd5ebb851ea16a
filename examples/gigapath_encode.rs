//! Encodes a slide with GigaPath's slide encoder.
//!
//! ```text
//! cargo run --release --example gigapath_encode -- WEIGHTS.safetensors TILES.safetensors [OPTIONS]
//! cargo run --release --example gigapath_encode -- --random 1000 [OPTIONS]
//! ```
//! TILES holds `features` (tiles, 1536) and `coords` (tiles, 2), the place of each tile in pixels of level 0, as F32, F16 or
//! BF16 (coordinates as F32). With `--random N`, weights and N tiles are drawn: to see what a slide takes here.
//!
//! ```text
//! --layers N          layers of the model, with random weights (default 12)
//! --all-layers        embeddings of every state, too
//! --tiles             embeddings of all tiles, too
//! --attention LAYER   attention of CLS to the tiles in this layer, from 0 on, too
//! --max-wsi-size N    segment lengths for slides of this edge (default 262144)
//! --masked            padding is masked: for models that were not trained with torchscale
//! --f16               activations in half precision
//! --budget MIB        refuse when the pool would hold more
//! --slice MS          time of the device a submission may take (default 8)
//! --out FILE          results as safetensors (default slide_embedding.safetensors)
//! ```

use std::collections::HashMap;
use std::error::Error;
use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use dilated_attention::models::gigapath::{
    Slide, SlideEncoder, SlideEncoderConfig, SlideOutput, SlideOutputs,
};
use dilated_attention::recorder::SliceOptions;
use dilated_attention::{Context, DType, WeightFile};
use safetensors::tensor::{Dtype, TensorView};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What the command line says.
struct Settings {
    files: Vec<String>,
    random_tiles: Option<usize>,
    config: SlideEncoderConfig,
    outputs: SlideOutputs,
    budget_bytes: Option<u64>,
    slices: SliceOptions,
    out: String,
}

fn settings() -> Result<Settings, Box<dyn Error>> {
    let mut settings = Settings {
        files: Vec::new(),
        random_tiles: None,
        config: SlideEncoderConfig::base(),
        outputs: SlideOutputs::default(),
        budget_bytes: None,
        slices: SliceOptions::default(),
        out: "slide_embedding.safetensors".to_owned(),
    };
    let mut masked = false;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || {
            let missing = format!("{argument} needs a value");
            arguments.next().ok_or(missing)
        };
        match argument.as_str() {
            "--random" => settings.random_tiles = Some(value()?.parse()?),
            "--layers" => settings.config.num_layers = value()?.parse()?,
            "--all-layers" => settings.outputs.layers = true,
            "--tiles" => settings.outputs.encoded = true,
            "--attention" => settings.outputs.attention.push(value()?.parse()?),
            "--max-wsi-size" => {
                settings.config = settings.config.max_wsi_size(value()?.parse()?)?;
            }
            "--masked" => masked = true,
            "--f16" => settings.config.activations = DType::F16,
            "--budget" => {
                let mib: u64 = value()?.parse()?;
                settings.budget_bytes =
                    Some(mib.checked_mul(1 << 20).ok_or("the budget is too large")?);
            }
            "--slice" => {
                settings.slices =
                    SliceOptions::default().target(Duration::from_millis(value()?.parse()?));
            }
            "--out" => settings.out = value()?,
            option if option.starts_with('-') => {
                return Err(format!(
                    "unknown option {option}; the options are in the file's first lines"
                )
                .into());
            }
            _ => settings.files.push(argument),
        }
    }
    if masked {
        settings.config = settings.config.masked();
    }
    Ok(settings)
}

/// Features and coordinates of a slide.
type Tiles = (Vec<f32>, Vec<[f32; 2]>);

/// From a file or drawn.
fn slide(settings: &Settings) -> Result<Tiles, Box<dyn Error>> {
    let dim = settings.config.feature_dim;
    if let Some(tiles) = settings.random_tiles {
        let count = tiles.checked_mul(dim).ok_or("too many tiles")?;
        let mut state = 1u64;
        let mut draw = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        let features = (0..count).map(|_| draw()).collect();
        let width = (tiles as f64).sqrt().ceil() as usize;
        let place = |i: usize| [(i % width * 256) as f32, (i / width * 256) as f32];
        return Ok((features, (0..tiles).map(place).collect()));
    }
    let [_, path] = &settings.files[..] else {
        return Err("WEIGHTS.safetensors and TILES.safetensors, or --random N, are needed".into());
    };
    let file = WeightFile::open(path)?;
    let read = |name: &str, width: usize| -> Result<Vec<f32>, Box<dyn Error>> {
        let tensor = file
            .get(name)
            .ok_or_else(|| format!("{path} has no tensor {name}"))?;
        match tensor.shape() {
            [_, columns] if *columns == width => Ok(tensor.to_f32(0..tensor.num_elements())?),
            shape => Err(format!(
                "{name} of {path} has the shape {shape:?}, (tiles, {width}) is needed"
            )
            .into()),
        }
    };
    let coords = read("coords", 2)?;
    let coords = coords.chunks(2).map(|pair| [pair[0], pair[1]]).collect();
    Ok((read("features", dim)?, coords))
}

fn run() -> Result<(), Box<dyn Error>> {
    let settings = settings()?;
    let (features, coords) = slide(&settings)?;
    let slides = [Slide {
        features: &features,
        coords: &coords,
    }];
    let context = Context::headless()?;
    println!("adapter     {}", context.adapter_info().name);
    let facts = context.facts().clone();
    let plan = SlideEncoder::plan(&settings.config, &[coords.len()], &settings.outputs, facts)?;
    print!("{plan}");
    if let Some(budget_bytes) = settings.budget_bytes {
        plan.check_budget(budget_bytes)?;
        context.pool().set_budget_bytes(Some(budget_bytes));
    }
    let begin = Instant::now();
    let encoder = SlideEncoder::new(&context, settings.config.clone())?;
    let weights = match (&settings.random_tiles, settings.files.first()) {
        (None, Some(path)) => encoder.load(&context, &WeightFile::open(path)?)?,
        _ => {
            let mut recorder = context.recorder("weights");
            let weights = encoder.initial_weights(&mut recorder, 1)?;
            recorder.submit()?.wait()?;
            weights
        }
    };
    println!("weights     {:.2} s", begin.elapsed().as_secs_f64());
    context.pool().force_trim();
    context.pool().reset_peaks();
    let begin = Instant::now();
    let mut shown = -1;
    let show = |part: f64| {
        let percent = (100.0 * part) as i32;
        if percent > shown {
            shown = percent;
            let bar = "#".repeat(percent as usize / 4);
            print!("\r[{bar:<25}] {percent:3} %");
            // A progress bar that cannot be shown is no reason to stop.
            let _ = std::io::stdout().flush();
        }
    };
    let slices = settings.slices;
    let outputs = &settings.outputs;
    let output =
        pollster::block_on(encoder.encode(&context, &weights, &slides, outputs, slices, show))?;
    let seconds = begin.elapsed().as_secs_f64();
    let stats = context.pool().stats();
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    println!(
        "\rencoded     {seconds:.2} s, {:.1} GFLOP/s; pool at most {:.1} MiB asked for, {:.1} MiB held",
        plan.flop as f64 / 1e9 / seconds,
        mib(stats.requested_bytes.peak),
        mib(stats.held_bytes.peak),
    );
    println!(
        "cls         {:?} ...",
        &output.cls[..output.cls.len().min(4)]
    );
    save(&output, &settings.out)
}

fn save(output: &SlideOutput, path: &str) -> Result<(), Box<dyn Error>> {
    let width = output.width;
    let mut tensors: Vec<(String, Vec<usize>, Vec<f32>)> = vec![
        ("cls".to_owned(), vec![width], output.cls.clone()),
        ("pool".to_owned(), vec![width], output.pool.clone()),
    ];
    if !output.layers.is_empty() {
        let shape = vec![output.layers.len(), width];
        let cls = output.layers.iter().flat_map(|layer| layer.cls.clone());
        tensors.push(("layers_cls".to_owned(), shape.clone(), cls.collect()));
        let pool = output.layers.iter().flat_map(|layer| layer.pool.clone());
        tensors.push(("layers_pool".to_owned(), shape, pool.collect()));
    }
    if let Some(encoded) = &output.encoded {
        // Without the CLS token: a row for each tile.
        let tiles = encoded[width..].to_vec();
        tensors.push(("tiles".to_owned(), vec![output.tokens - 1, width], tiles));
    }
    for attention in &output.attention {
        let map = attention.map(0).unwrap_or_default();
        let tiles: Vec<f32> = map.into_iter().skip(1).collect();
        let name = format!("attention.{}", attention.layer);
        tensors.push((name, vec![tiles.len()], tiles));
    }
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, _, values)| {
            values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect()
        })
        .collect();
    let mut views = HashMap::new();
    for ((name, shape, _), bytes) in tensors.iter().zip(&bytes) {
        views.insert(
            name.clone(),
            TensorView::new(Dtype::F32, shape.clone(), bytes)?,
        );
    }
    safetensors::serialize_to_file(views, None, path.as_ref())?;
    println!("saved       {path}");
    Ok(())
}
