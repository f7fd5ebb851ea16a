//! The command line.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use dilated_attention::models::gigapath::{SlideEncoder, SlideEncoderConfig};
use dilated_attention::recorder::SliceOptions;
use dilated_attention::{DType, WeightFile};
use program::Arguments;
use slide_files::TileSizeChoice;

/// What the command line says.
#[derive(Debug)]
pub struct Settings {
    /// Where weights and tiles come from.
    pub source: Source,
    /// Where the size of tiles comes from.
    pub tile_size: TileSizeChoice,
    /// Whether the file may name another encoder than GigaPath's.
    pub any_encoder: bool,
    /// The model.
    pub config: SlideEncoderConfig,
    /// Time of a slice at the start.
    pub slice: Duration,
    /// Bytes that states may take on the host.
    pub keep_bytes: usize,
    /// Whether stdout is told what happens.
    pub trace: bool,
}

/// Where weights and tiles come from.
#[derive(Debug)]
pub enum Source {
    /// Files.
    Files { weights: PathBuf, tiles: PathBuf },
    /// Drawn: so many tiles.
    Drawn(usize),
}

impl Settings {
    /// Reads the arguments after the program's name.
    pub fn from_arguments(mut arguments: Arguments) -> program::Result<Self> {
        let (mut drawn_config, mut layers) = (SlideEncoderConfig::base(), None);
        let (mut heads, mut max_wsi_size, mut f16) = (None, None, false);
        let mut slice = SliceOptions::default().target;
        let (mut keep_mib, mut trace) = (1024u32, false);
        let (mut files, mut drawn) = (Vec::new(), None);
        let (mut tile_size, mut any_encoder) = (TileSizeChoice::OfFile, false);
        while let Some(argument) = arguments.next_argument()? {
            match argument.option() {
                Some("--random") => drawn = Some(arguments.value()?),
                Some("--size") => {
                    drawn_config = match arguments.value::<String>()?.as_str() {
                        "base" => SlideEncoderConfig::base(),
                        "flash" => SlideEncoderConfig::flash(),
                        "large" => SlideEncoderConfig::large(),
                        "wide" => SlideEncoderConfig::wide(),
                        name => {
                            let sizes = "base, flash, large or wide";
                            return Err(format!("--size is {sizes}, not \"{name}\"").into());
                        }
                    };
                }
                Some("--tile-size") => {
                    tile_size = TileSizeChoice::Given(arguments.value::<NonZeroU32>()?.get());
                }
                Some("--force-tile-size") => {
                    tile_size = TileSizeChoice::Forced(arguments.value::<NonZeroU32>()?.get());
                }
                Some("--any-encoder") => any_encoder = true,
                Some("--layers") => layers = Some(arguments.value()?),
                Some("--heads") => heads = Some(arguments.value()?),
                Some("--max-wsi-size") => max_wsi_size = Some(arguments.value()?),
                Some("--f16") => f16 = true,
                Some("--slice") => slice = Duration::from_millis(arguments.value()?),
                Some("--keep") => keep_mib = arguments.value()?,
                Some("--trace") => trace = true,
                Some(_) => return Err(arguments.unknown()),
                None => files.push(argument.into_path()),
            }
        }
        let source = match (<[PathBuf; 2]>::try_from(files), drawn) {
            (Ok([weights, tiles]), None) => Source::Files { weights, tiles },
            (Err(files), Some(tiles)) if files.is_empty() => Source::Drawn(tiles),
            _ => return Err("WEIGHTS.safetensors and TILES, or --random N, are needed".into()),
        };
        let mut config = match &source {
            Source::Files { weights, .. } => {
                match WeightFile::open(weights) {
                    Ok(file) => {
                        SlideEncoderConfig::from_weights(&SlideEncoder::weights_in(&file)?, heads)?
                    }
                    // The thread that loads it meets the same error, and says it in the window.
                    Err(_) => SlideEncoderConfig::base(),
                }
            }
            Source::Drawn(_) => {
                drawn_config.num_layers = layers.unwrap_or(drawn_config.num_layers);
                match heads {
                    Some(heads) => drawn_config.heads(heads)?,
                    None => drawn_config,
                }
            }
        };
        if f16 {
            config.activations = DType::F16;
        }
        if let Some(max_wsi_size) = max_wsi_size {
            config = config.max_wsi_size(max_wsi_size)?;
        }
        Ok(Self {
            source,
            tile_size,
            any_encoder,
            config,
            slice,
            keep_bytes: usize::try_from(u64::from(keep_mib) << 20).unwrap_or(usize::MAX),
            trace,
        })
    }
}
