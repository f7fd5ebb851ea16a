//! The command line.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use dilated_attention::models::gigapath::SlideEncoderConfig;
use dilated_attention::recorder::SliceOptions;
use dilated_attention::{DType, DilatedAttentionConfig};
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
    pub fn from_arguments(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut config = SlideEncoderConfig::base();
        let (mut layers, mut heads, mut max_wsi_size, mut f16) = (None, None, None, false);
        let mut slice = SliceOptions::default().target;
        let (mut keep_mib, mut trace) = (1024, false);
        let (mut files, mut drawn) = (Vec::new(), None);
        let (mut tile_size, mut any_encoder) = (TileSizeChoice::OfFile, false);
        while let Some(argument) = arguments.next() {
            let mut number = || {
                let value = arguments.next().unwrap_or_default();
                let parsed = value.parse::<u32>();
                parsed.map_err(|_| format!("{argument} needs a whole number, not \"{value}\""))
            };
            match argument.as_str() {
                "--random" => drawn = Some(number()? as usize),
                "--size" => {
                    let name = arguments.next().unwrap_or_default();
                    config = match name.as_str() {
                        "base" => SlideEncoderConfig::base(),
                        "large" => SlideEncoderConfig::large(),
                        "wide" => SlideEncoderConfig::wide(),
                        _ => return Err(format!("--size is base, large or wide, not \"{name}\"")),
                    };
                }
                "--tile-size" | "--force-tile-size" => {
                    let pixels = number()?;
                    let pixels = NonZeroU32::new(pixels).map(NonZeroU32::get);
                    let pixels = pixels.ok_or_else(|| format!("{argument} needs at least 1"))?;
                    tile_size = match argument.as_str() {
                        "--tile-size" => TileSizeChoice::Given(pixels),
                        _ => TileSizeChoice::Forced(pixels),
                    };
                }
                "--any-encoder" => any_encoder = true,
                "--layers" => layers = Some(number()? as usize),
                "--heads" => heads = Some(number()?),
                "--max-wsi-size" => max_wsi_size = Some(number()?),
                "--f16" => f16 = true,
                "--slice" => slice = Duration::from_millis(number()?.into()),
                "--keep" => keep_mib = number()?,
                "--trace" => trace = true,
                option if option.starts_with('-') => {
                    return Err(format!(
                        "unknown option {option}; the options are in the first lines of main.rs"
                    ));
                }
                _ => files.push(PathBuf::from(argument)),
            }
        }
        let source = match (<[PathBuf; 2]>::try_from(files), drawn) {
            (Ok([weights, tiles]), None) => Source::Files { weights, tiles },
            (Err(files), Some(tiles)) if files.is_empty() => Source::Drawn(tiles),
            _ => return Err("WEIGHTS.safetensors and TILES, or --random N, are needed".to_owned()),
        };
        config.num_layers = layers.unwrap_or(config.num_layers);
        if f16 {
            config.activations = DType::F16;
        }
        let of_model = |error: dilated_attention::Error| error.to_string();
        if let Some(heads) = heads {
            let (lengths, rates): (Vec<_>, Vec<_>) = (config.attention.branches().iter())
                .map(|branch| (branch.segment_length, branch.dilation_rate))
                .unzip();
            config.attention = DilatedAttentionConfig::new(heads, 48, &lengths, &rates)
                .map_err(of_model)?
                .torchscale();
            config.ffn_dim = 4 * config.width();
        }
        if let Some(max_wsi_size) = max_wsi_size {
            config = config.max_wsi_size(max_wsi_size).map_err(of_model)?;
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
