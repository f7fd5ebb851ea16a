//! What the command line says.

use std::fs::OpenOptions;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dilated_attention::models::gigapath::{SlideEncoder, SlideEncoderConfig, SlideOutputs};
use dilated_attention::recorder::SliceOptions;
use dilated_attention::weights::WeightsError;
use dilated_attention::{DType, Error, WeightFile, WeightSource};
use program::{Arguments, say};
use slide_files::{TileSize, TileSizeChoice, Tiles};

/// Which embedding is the result.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Pool {
    /// That of the CLS token, which the published weights were trained without.
    Cls,
    /// That of the mean of all tiles, as its authors use the model.
    Mean,
}

/// How results are written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Npy,
    Safetensors,
}

pub struct Settings {
    /// The checkpoint; without one, weights are drawn.
    pub weights: Option<PathBuf>,
    /// Features, and coordinates where they are in a file of their own.
    tiles: Vec<PathBuf>,
    random_tiles: Option<usize>,
    tile_size: TileSizeChoice,
    /// Whether the file may name another encoder than GigaPath's.
    any_encoder: bool,
    /// Sizes of drawn weights.
    drawn: SlideEncoderConfig,
    max_wsi_size: Option<u32>,
    /// What stands before names in the checkpoint, where that was told.
    prefix: Option<String>,
    heads: Option<u32>,
    masked: bool,
    half: bool,
    pub outputs: SlideOutputs,
    pub pool: Pool,
    pub compat: bool,
    pub budget_bytes: Option<u64>,
    pub slices: SliceOptions,
    pub out: PathBuf,
    pub format: Format,
}

impl Settings {
    pub fn from_arguments(mut arguments: Arguments) -> program::Result<Self> {
        let mut settings = Self {
            weights: None,
            tiles: Vec::new(),
            random_tiles: None,
            tile_size: TileSizeChoice::OfFile,
            any_encoder: false,
            drawn: SlideEncoderConfig::base(),
            max_wsi_size: None,
            prefix: None,
            heads: None,
            masked: false,
            half: false,
            outputs: SlideOutputs::default(),
            pool: Pool::Mean,
            compat: false,
            budget_bytes: None,
            slices: SliceOptions::default(),
            out: "slide_embedding.safetensors".into(),
            format: Format::Safetensors,
        };
        let mut files = Vec::new();
        let (mut depth, mut size) = (None, None);
        while let Some(argument) = arguments.next_argument()? {
            match argument.option() {
                Some("--random") => settings.random_tiles = Some(arguments.value()?),
                Some("--tile-size") => {
                    settings.tile_size =
                        TileSizeChoice::Given(arguments.value::<NonZeroU32>()?.get());
                }
                Some("--force-tile-size") => {
                    settings.tile_size =
                        TileSizeChoice::Forced(arguments.value::<NonZeroU32>()?.get());
                }
                Some("--any-encoder") => settings.any_encoder = true,
                Some("--pool") => {
                    settings.pool = match arguments.value::<String>()?.as_str() {
                        "cls" => Pool::Cls,
                        "mean" => Pool::Mean,
                        other => return Err(format!("--pool is mean or cls, not {other}").into()),
                    };
                }
                Some("--layers") => match arguments.value::<String>()?.as_str() {
                    "all" => settings.outputs.layers = true,
                    other => {
                        let hint = "the number of layers is the checkpoint's, or --depth";
                        return Err(format!("--layers is all, not {other}; {hint}").into());
                    }
                },
                Some("--tiles") => settings.outputs.encoded = true,
                Some("--attention") => settings.outputs.attention.push(arguments.value()?),
                Some("--prefix") => settings.prefix = Some(arguments.value()?),
                Some("--heads") => settings.heads = Some(arguments.value()?),
                Some("--allow-nonfinite") => settings.outputs.allow_nonfinite = true,
                Some("--compat") => settings.compat = true,
                Some("--out") => settings.out = arguments.os_value()?.into(),
                Some("--f16") => settings.half = true,
                Some("--max-wsi-size") => settings.max_wsi_size = Some(arguments.value()?),
                Some("--masked") => settings.masked = true,
                Some("--budget") => {
                    let mib: u64 = arguments.value()?;
                    let bytes = mib.checked_mul(1 << 20);
                    let too_large = || format!("--budget {mib}: more than there can be");
                    settings.budget_bytes = Some(bytes.ok_or_else(too_large)?);
                }
                Some("--slice") => {
                    let target = Duration::from_millis(arguments.value()?);
                    settings.slices = SliceOptions::default().target(target);
                }
                Some("--depth") => depth = Some(arguments.value::<u16>()?),
                Some("--size") => {
                    size = Some(match arguments.value::<String>()?.as_str() {
                        "base" => SlideEncoderConfig::base(),
                        "flash" => SlideEncoderConfig::flash(),
                        "large" => SlideEncoderConfig::large(),
                        "wide" => SlideEncoderConfig::wide(),
                        other => {
                            return Err(format!(
                                "--size is base, flash, large or wide, not {other}"
                            )
                            .into());
                        }
                    });
                }
                Some(_) => return Err(arguments.unknown()),
                None => files.push(argument.into_path()),
            }
        }
        settings.drawn = size.clone().unwrap_or(settings.drawn);
        settings.drawn.num_layers = depth.map_or(settings.drawn.num_layers, usize::from);
        let mut files = files.into_iter();
        settings.weights = files.next();
        settings.tiles = files.collect();
        if settings.weights.is_some() && (depth.is_some() || size.is_some()) {
            return Err(
                "--depth and --size are for drawn weights; a checkpoint has its own".into(),
            );
        }
        if settings.weights.is_none() && settings.prefix.is_some() {
            return Err("--prefix is for a checkpoint; drawn weights have none".into());
        }
        if settings.random_tiles.is_some() != settings.tiles.is_empty() || settings.tiles.len() > 2
        {
            return Err(
                "WEIGHTS.safetensors TILES [COORDS.npy] is needed, or --random TILES".into(),
            );
        }
        settings.check_outputs()?;
        Ok(settings)
    }

    /// Before any work: that all outputs can be written.
    fn check_outputs(&mut self) -> program::Result<()> {
        let extension = self
            .out
            .extension()
            .and_then(|extension| extension.to_str());
        self.format = match extension {
            Some("npy") => Format::Npy,
            Some("safetensors") => Format::Safetensors,
            _ => {
                let out = self.out.display();
                return Err(format!("--out {out}: .npy or .safetensors is needed").into());
            }
        };
        let others = self.outputs.encoded || !self.outputs.attention.is_empty();
        if self.compat && others {
            return Err(
                "--compat is what upstream returns, without --tiles and --attention".into(),
            );
        }
        if self.format == Format::Npy && !self.compat && (others || self.outputs.layers) {
            let hint = "--out FILE.safetensors takes the others, too";
            return Err(format!("an .npy holds one array; {hint}").into());
        }
        let mut inputs = self.weights.iter().chain(&self.tiles);
        let is_out = |path: &&PathBuf| match (path.canonicalize(), self.out.canonicalize()) {
            (Ok(path), Ok(out)) => path == out,
            _ => false,
        };
        if let Some(input) = inputs.find(is_out) {
            return Err(format!("--out would overwrite {}, which is read", input.display()).into());
        }
        can_be_written(&self.out)
            .map_err(|error| format!("--out {}: {error}", self.out.display()).into())
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
            (None, Some(heads)) => self.drawn.clone().heads(heads)?,
            (None, None) => self.drawn.clone(),
        };
        if let Some(max_wsi_size) = self.max_wsi_size {
            config = config.max_wsi_size(max_wsi_size)?;
        }
        if self.masked {
            config = config.masked();
        }
        if self.half {
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
        match self.tiles.first() {
            Some(path) => path.display().to_string(),
            None => "drawn tiles".to_owned(),
        }
    }

    /// Read or drawn, and their size in the unit of their coordinates, which is to be the encoder's.
    pub fn tiles(&self, config: &SlideEncoderConfig) -> program::Result<(Tiles, TileSize)> {
        let feature_dim = config.feature_dim;
        let tiles = match (self.random_tiles, self.tiles.as_slice()) {
            (Some(count), _) => Tiles::drawn(count, feature_dim)?,
            (None, [features, coords]) => Tiles::read_pair(features, coords, feature_dim)?,
            (None, [path, ..]) => Tiles::read(path, feature_dim)?,
            (None, []) => return Err("TILES is needed, or --random TILES".into()),
        };
        let file = |path: Option<&PathBuf>| match path {
            Some(path) => path.display().to_string(),
            None => "drawn tiles".to_owned(),
        };
        if !self.any_encoder {
            let error = |error| format!("{}: {error}", file(self.tiles.first()));
            tiles.expect_encoder("gigapath").map_err(error)?;
        }
        let tile_size = tiles
            .tile_size(self.tile_size, config.tile_size)
            .map_err(|error| format!("{}: {error}", file(self.tiles.last())))?;
        let mut config = config.clone();
        config.tile_size = tile_size.pixels;
        config
            .cells(&tiles.coords)
            .map_err(|error| format!("{}: {error}", file(self.tiles.last())))?;
        Ok((tiles, tile_size))
    }
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
