//! What the command line says.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Parser, ValueEnum, value_parser};
use dilated_attention::models::gigapath::{SlideEncoder, SlideEncoderConfig, SlideOutputs};
use dilated_attention::weights::WeightsError;
use dilated_attention::{DType, Error, SliceOptions, WeightFile, WeightSource};
use program::say;
use slide_files::{TileSize, TileSizeChoice, Tiles};

/// Which embedding is the result.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Pool {
    /// Of all tiles, as the model's authors use it
    Mean,
    /// Of the CLS token, which was not trained in the published weights
    Cls,
}

/// Sizes of drawn weights.
#[derive(Clone, Copy, ValueEnum)]
enum Size {
    Base,
    Flash,
    Large,
    Wide,
}

/// How results are written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Npy,
    Safetensors,
}

/// Encodes a slide with GigaPath's slide encoder
///
/// Coordinates are pixels of level 0, the slide as it was scanned: tiles of 256 pixels at 20x lie 256 apart on a slide
/// scanned at 20x and 512 on one scanned at 40x, and the position of a tile in the model is floor(coordinate / tile size).
/// The size comes from what the file says: TRIDENT's `patch_size_level0`, or CLAM's `patch_size`, `patch_level` and
/// `downsample`, as attributes in .h5, metadata in .safetensors, arrays of one number in .npz. Where it says nothing it
/// is 256. What contradicts the file or the coordinates is an error.
///
/// The result is the norm of the mean of all tiles, which is how the model's authors use it: the CLS token was not trained
/// in the published weights, as they say. `--pool cls` is for weights that were fine-tuned with it. The attention of an
/// untrained CLS (`--attention`) says nothing of which tiles matter.
///
/// .npy holds the embedding, (width). .safetensors holds `embedding`, both embeddings as `cls` and `pool`, and where asked
/// for `layers_cls` and `layers_pool` (states, width), `tiles` (tiles, width), and `attention.LAYER` (tiles).
///
/// The plan that is printed first tells the time where a run before has measured the kernels on this adapter; that is kept
/// in the user's folder for caches (DILATED_ATTENTION_CACHE=off, or a path).
///
/// `--compat` is for what reads results of prov-gigapath. Its `forward` returns a list of (1, width): one element, or with
/// `all_layer_embed` (here `--layers all`) one for each state; its `global_pool=True` is `--pool mean`, the default here,
/// its own default `--pool cls`. .npy holds that list stacked, (1, 1, width) or (states, 1, width). .safetensors holds
/// `embedding`, (1, width), or under the names that upstream's `run_inference_with_slide_encoder` gives them
/// `layer_0_embed`, ... and `last_layer_embed`, which is the last state again. Mind that upstream's states lack the
/// encoder's last norm: `last_layer_embed` is not the embedding of a call without `all_layer_embed`. Their computation is
/// upstream's in either case, unless `--masked` says otherwise.
#[derive(Parser)]
#[command(verbatim_doc_comment)]
pub struct Settings {
    /// Checkpoint of GigaPath's slide encoder, GigaPath-Flash's or one like them: layers, width and features of a tile are what
    /// its shapes say; checkpoint.py beside the source converts one of PyTorch, or makes one to try. Without it, weights are drawn
    #[arg(required_unless_present = "random")]
    pub weights: Option<PathBuf>,
    /// `features` (tiles, 1536) and `coords` (tiles, 2), the place of each tile in pixels of level 0: .safetensors, .npz, .h5 as
    /// CLAM and TRIDENT write it (built with --features slide-files/h5), or .npy with the coordinates in a second one
    #[arg(required_unless_present = "random", conflicts_with = "random")]
    tiles: Option<PathBuf>,
    /// Coordinates in an .npy of their own
    coords: Option<PathBuf>,
    /// Draws so many tiles instead, and weights where none are given: to see what a slide takes here
    #[arg(long, value_name = "TILES")]
    random: Option<usize>,
    /// Edge of a tile in pixels of level 0, where the file does not say it [default: 256]
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    tile_size: Option<u32>,
    /// The same, whatever file and coordinates say
    #[arg(long, value_name = "N", conflicts_with = "tile_size", value_parser = value_parser!(u32).range(1..))]
    force_tile_size: Option<u32>,
    /// Take features that the file says another encoder than GigaPath's computed
    #[arg(long)]
    any_encoder: bool,
    /// Which embedding is the result
    #[arg(long, default_value = "mean")]
    pub pool: Pool,
    /// Embeddings of every state, too: the first layer's input, then each layer's output. How many layers there are is what the
    /// checkpoint says, or --depth
    #[arg(long, value_name = "WHICH", value_parser = ["all"])]
    layers: Option<String>,
    /// Embeddings of all tiles, too
    #[arg(id = "encoded", long = "tiles", conflicts_with = "compat")]
    encoded: bool,
    /// Attention of CLS to the tiles in this layer, from 0 on, too; several layers if given again
    #[arg(long, value_name = "LAYER", conflicts_with = "compat")]
    attention: Vec<usize>,
    /// What stands before the names in WEIGHTS (module.), where there are several such prefixes
    #[arg(long, requires = "weights")]
    prefix: Option<String>,
    /// Heads of the model; published ones have 16, and a width of their own (384, 768, 1024, 1536)
    #[arg(long, value_name = "N")]
    heads: Option<usize>,
    /// Save results that are infinite or NaN, too, instead of saying where they arise
    #[arg(long)]
    allow_nonfinite: bool,
    /// What upstream's forward returns, and no more
    #[arg(long)]
    pub compat: bool,
    /// .npy for the result alone or .safetensors for all
    #[arg(
        long,
        value_name = "FILE",
        default_value = "slide_embedding.safetensors"
    )]
    pub out: PathBuf,
    /// Activations in half precision
    #[arg(long)]
    f16: bool,
    /// Segment lengths for slides of this edge [default: 262144]
    #[arg(long, value_name = "N")]
    max_wsi_size: Option<usize>,
    /// Padding is masked: for models that were not trained with torchscale
    #[arg(long)]
    masked: bool,
    /// Refuse when the pool would hold more
    #[arg(long, value_name = "MIB", value_parser = value_parser!(u64).range(..=u64::MAX >> 20))]
    budget: Option<u64>,
    /// Time of the device a submission may take, in milliseconds [default: 8]
    #[arg(long, value_name = "MS")]
    slice: Option<u64>,
    /// Layers of drawn weights [default: 12]
    #[arg(long, value_name = "N", conflicts_with = "weights")]
    depth: Option<u16>,
    /// Sizes of drawn weights [default: base]
    #[arg(long, value_name = "NAME", conflicts_with = "weights")]
    size: Option<Size>,
}

impl Settings {
    /// Before any work: that all outputs can be written, and how.
    pub fn format(&self) -> program::Result<Format> {
        let extension = self.out.extension();
        let format = match extension.and_then(|extension| extension.to_str()) {
            Some("npy") => Format::Npy,
            Some("safetensors") => Format::Safetensors,
            _ => {
                let out = self.out.display();
                return Err(format!("--out {out}: .npy or .safetensors is needed").into());
            }
        };
        let outputs = self.outputs();
        let others = outputs.layers || outputs.encoded || !outputs.attention.is_empty();
        if format == Format::Npy && !self.compat && others {
            let hint = "--out FILE.safetensors takes the others, too";
            return Err(format!("an .npy holds one array; {hint}").into());
        }
        let mut inputs = [&self.weights, &self.tiles, &self.coords]
            .into_iter()
            .flatten();
        let is_out = |path: &&PathBuf| match (path.canonicalize(), self.out.canonicalize()) {
            (Ok(path), Ok(out)) => path == out,
            _ => false,
        };
        if let Some(input) = inputs.find(is_out) {
            return Err(format!("--out would overwrite {}, which is read", input.display()).into());
        }
        can_be_written(&self.out)
            .map_err(|error| format!("--out {}: {error}", self.out.display()))?;
        Ok(format)
    }

    /// What is computed beside the embedding.
    pub fn outputs(&self) -> SlideOutputs {
        SlideOutputs {
            layers: self.layers.is_some(),
            encoded: self.encoded,
            attention: self.attention.clone(),
            allow_nonfinite: self.allow_nonfinite,
            ..SlideOutputs::default()
        }
    }

    /// How long the device may be busy at a time.
    pub fn slices(&self) -> SliceOptions {
        let slices = SliceOptions::default();
        match self.slice {
            Some(milliseconds) => slices.with_target(Duration::from_millis(milliseconds)),
            None => slices,
        }
    }

    /// What the pool may hold.
    pub fn budget_bytes(&self) -> Option<u64> {
        self.budget.map(|mib| mib << 20)
    }

    /// Sizes of drawn weights.
    fn drawn(&self) -> SlideEncoderConfig {
        let mut config = match self.size {
            None | Some(Size::Base) => SlideEncoderConfig::base(),
            Some(Size::Flash) => SlideEncoderConfig::flash(),
            Some(Size::Large) => SlideEncoderConfig::large(),
            Some(Size::Wide) => SlideEncoderConfig::wide(),
        };
        config.num_layers = self.depth.map_or(config.num_layers, usize::from);
        config
    }

    /// The slide encoder in the checkpoint: under the prefix that was told, or the one that is found.
    pub fn part<'a>(&self, checkpoint: &'a WeightFile) -> program::Result<WeightSource<'a>> {
        Ok(match self.prefix.as_deref() {
            Some("") => checkpoint.all(),
            Some(prefix) => checkpoint.part(format!("{}.", prefix.trim_end_matches('.'))),
            None => SlideEncoder::weights_in(checkpoint).map_err(advised)?,
        })
    }

    /// Options of the encoder: sizes of the checkpoint, the others as told.
    pub fn config(
        &self,
        checkpoint: Option<&WeightSource<'_>>,
    ) -> program::Result<SlideEncoderConfig> {
        let mut config = match (checkpoint, self.heads) {
            (Some(weights), heads) => {
                SlideEncoderConfig::from_weights(weights, heads).map_err(advised)?
            }
            (None, Some(heads)) => self.drawn().with_heads(heads)?,
            (None, None) => self.drawn(),
        };
        if let Some(max_wsi_size) = self.max_wsi_size {
            config = config.with_max_wsi_size(max_wsi_size)?;
        }
        if self.masked {
            config = config.with_masked_padding();
        }
        if self.f16 {
            config.activations = DType::F16;
        }
        Ok(config)
    }

    /// Says which model it is, and what of that is assumed.
    pub fn say_model(&self, config: &SlideEncoderConfig, weights: Option<&WeightSource<'_>>) {
        let (heads, head_dim) = (config.attention.num_heads(), config.attention.head_dim());
        let assumed = match (&self.weights, self.heads) {
            (Some(_), None) => ", as published models have (else --heads)",
            _ => "",
        };
        say!(
            "model       {} layers, {} wide, feed-forward {}, {heads} heads of {head_dim}{assumed}, {} features a tile",
            config.num_layers,
            config.width(),
            config.ffn_dim,
            config.feature_dim
        );
        if let Some(prefix) = weights
            .map(WeightSource::prefix)
            .filter(|prefix| !prefix.is_empty())
        {
            say!("prefix      {prefix}, which the names in the file have before the model's");
        }
    }

    /// What errors call the features.
    pub fn tiles_name(&self) -> String {
        file_name(self.tiles.as_deref())
    }

    /// Read or drawn, and their size in the unit of their coordinates, which is to be the encoder's.
    pub fn tiles(&self, config: &SlideEncoderConfig) -> program::Result<(Tiles, TileSize)> {
        let feature_dim = config.feature_dim;
        let tiles = match (self.random, &self.tiles, &self.coords) {
            (Some(count), ..) => Tiles::drawn(count, feature_dim)?,
            (None, Some(features), Some(coords)) => {
                Tiles::read_pair(features, coords, feature_dim)?
            }
            (None, Some(path), None) => Tiles::read(path, feature_dim)?,
            (None, None, _) => return Err("TILES is needed, or --random TILES".into()),
        };
        if !self.any_encoder {
            let error = |error| format!("{}: {error}", self.tiles_name());
            tiles.expect_encoder("gigapath").map_err(error)?;
        }
        let choice = match (self.tile_size, self.force_tile_size) {
            (_, Some(pixels)) => TileSizeChoice::Forced(pixels as usize),
            (Some(pixels), None) => TileSizeChoice::Given(pixels as usize),
            (None, None) => TileSizeChoice::OfFile,
        };
        // Where the coordinates are.
        let coords = file_name(self.coords.as_deref().or(self.tiles.as_deref()));
        let tile_size = tiles
            .tile_size(choice, config.tile_size)
            .map_err(|error| format!("{coords}: {error}"))?;
        let mut config = config.clone();
        config.tile_size = tile_size.pixels;
        config
            .cells(&tiles.coords)
            .map_err(|error| format!("{coords}: {error}"))?;
        Ok((tiles, tile_size))
    }
}

/// What errors call a file of tiles.
fn file_name(path: Option<&Path>) -> String {
    path.map_or_else(
        || "drawn tiles".to_owned(),
        |path| path.display().to_string(),
    )
}

/// An error about a checkpoint, with the option that helps.
fn advised(error: impl Into<Error>) -> String {
    match error.into() {
        error @ Error::InvalidConfig { .. } => format!("{error} (--heads says it)"),
        error @ Error::Weights(WeightsError::Mismatch(_)) => {
            format!("{error} (--prefix says which part)")
        }
        error => error.to_string(),
    }
}

/// Whether a file can be written, without changing anything: found after the encoding, it would be too late.
fn can_be_written(path: &Path) -> std::io::Result<()> {
    let is_there = path.exists();
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)?;
    match is_there {
        true => Ok(()),
        false => std::fs::remove_file(path),
    }
}
