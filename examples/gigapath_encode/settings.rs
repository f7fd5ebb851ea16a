//! What the command line says.

use std::error::Error;
use std::fmt::Display;
use std::fs::OpenOptions;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use dilated_attention::models::gigapath::{SlideEncoderConfig, SlideOutputs};
use dilated_attention::recorder::SliceOptions;
use dilated_attention::{DType, WeightFile};
use slide_files::{TileSize, TileSizeChoice, Tiles};

use crate::checkpoint;

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

/// The value of an option.
fn parse<T: FromStr<Err: Display>>(option: &str, value: &str) -> Result<T, Box<dyn Error>> {
    let parsed = value.parse();
    parsed.map_err(|error| format!("{option} {value}: {error}").into())
}

impl Settings {
    pub fn from_arguments(
        mut arguments: impl Iterator<Item = String>,
    ) -> Result<Self, Box<dyn Error>> {
        let mut settings = Self {
            weights: None,
            tiles: Vec::new(),
            random_tiles: None,
            tile_size: TileSizeChoice::OfFile,
            any_encoder: false,
            drawn: SlideEncoderConfig::base(),
            max_wsi_size: None,
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
        while let Some(argument) = arguments.next() {
            let option = argument.as_str();
            let mut value = || {
                let missing = format!("{option} needs a value");
                arguments.next().ok_or(missing)
            };
            match option {
                "--random" => settings.random_tiles = Some(parse(option, &value()?)?),
                "--tile-size" => {
                    let pixels = parse::<NonZeroU32>(option, &value()?)?;
                    settings.tile_size = TileSizeChoice::Given(pixels.get());
                }
                "--force-tile-size" => {
                    let pixels = parse::<NonZeroU32>(option, &value()?)?;
                    settings.tile_size = TileSizeChoice::Forced(pixels.get());
                }
                "--any-encoder" => settings.any_encoder = true,
                "--pool" => {
                    settings.pool = match value()?.as_str() {
                        "cls" => Pool::Cls,
                        "mean" => Pool::Mean,
                        other => return Err(format!("--pool is mean or cls, not {other}").into()),
                    };
                }
                "--layers" => match value()?.as_str() {
                    "all" => settings.outputs.layers = true,
                    other => {
                        let hint = "the number of layers is the checkpoint's, or --depth";
                        return Err(format!("--layers is all, not {other}; {hint}").into());
                    }
                },
                "--tiles" => settings.outputs.encoded = true,
                "--attention" => settings.outputs.attention.push(parse(option, &value()?)?),
                "--compat" => settings.compat = true,
                "--out" => settings.out = value()?.into(),
                "--f16" => settings.half = true,
                "--max-wsi-size" => settings.max_wsi_size = Some(parse(option, &value()?)?),
                "--masked" => settings.masked = true,
                "--budget" => {
                    let mib: u64 = parse(option, &value()?)?;
                    let bytes = mib.checked_mul(1 << 20);
                    let too_large = || format!("--budget {mib}: more than there can be");
                    settings.budget_bytes = Some(bytes.ok_or_else(too_large)?);
                }
                "--slice" => {
                    let target = Duration::from_millis(parse(option, &value()?)?);
                    settings.slices = SliceOptions::default().target(target);
                }
                "--depth" => depth = Some(parse::<u16>(option, &value()?)?),
                "--size" => {
                    size = Some(match value()?.as_str() {
                        "base" => SlideEncoderConfig::base(),
                        "large" => SlideEncoderConfig::large(),
                        "wide" => SlideEncoderConfig::wide(),
                        other => {
                            return Err(
                                format!("--size is base, large or wide, not {other}").into()
                            );
                        }
                    });
                }
                _ if option.starts_with('-') => {
                    return Err(format!("unknown option {option}; --help lists them").into());
                }
                _ => files.push(PathBuf::from(argument)),
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
    fn check_outputs(&mut self) -> Result<(), Box<dyn Error>> {
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

    /// Options of the encoder: sizes of the checkpoint, the others as told.
    pub fn config(
        &self,
        checkpoint: Option<&WeightFile>,
    ) -> Result<SlideEncoderConfig, Box<dyn Error>> {
        let mut config = match (checkpoint, &self.weights) {
            (Some(file), Some(path)) => checkpoint::config(file)
                .map_err(|reason| format!("{}: {reason}", path.display()))?,
            _ => self.drawn.clone(),
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

    /// Read or drawn, and their size in the unit of their coordinates, which is to be the encoder's.
    pub fn tiles(&self, config: &SlideEncoderConfig) -> Result<(Tiles, TileSize), Box<dyn Error>> {
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
        let mut rows = tiles.features.chunks(feature_dim.max(1));
        // One of them would make the whole embedding no number.
        if let Some(tile) = rows.position(|row| row.iter().any(|value| !value.is_finite())) {
            let file = file(self.tiles.first());
            return Err(format!("{file}: features of tile {tile} are not all finite").into());
        }
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
