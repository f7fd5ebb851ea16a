//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum, value_parser};
use dilated_attention::models::gigapath::{SlideEncoder, SlideEncoderConfig};
use dilated_attention::{DType, SliceOptions, WeightFile};
use slide_files::TileSizeChoice;

/// A window that shows what GigaPath's slide encoder sees, and stays alive while it computes on the same device
///
/// Tiles are coloured by the similarity of their states to those of a tile, at first one in the middle, or by how much the
/// CLS token attends to them. That token was not trained in the published weights, where its attention is no map of what
/// matters.
#[derive(Debug, Parser)]
#[command(verbatim_doc_comment)]
pub struct Options {
    /// Checkpoint of GigaPath's slide encoder or GigaPath-Flash's; its shapes tell the sizes, and a prefix of its names is found
    #[arg(
        required_unless_present = "random",
        conflicts_with = "random",
        requires = "tiles"
    )]
    weights: Option<PathBuf>,
    /// `features` and `coords`: .safetensors, .npz, or with --features slide-files/h5 .h5
    tiles: Option<PathBuf>,
    /// Draws weights and a slide of so many tiles instead
    #[arg(long, value_name = "N")]
    random: Option<usize>,
    /// Of a drawn model [default: base]
    #[arg(long, value_name = "NAME", requires = "random")]
    size: Option<Size>,
    /// Of a drawn model, with another number of layers
    #[arg(long, value_name = "N", requires = "random")]
    layers: Option<usize>,
    /// With another number of heads than 16, which published models have
    #[arg(long, value_name = "N")]
    heads: Option<usize>,
    /// Segment lengths for slides of this edge [default: 262144]
    #[arg(long, value_name = "N")]
    max_wsi_size: Option<usize>,
    /// Edge of a tile in pixels of level 0, where the file does not say it: 512 for tiles of 256 at 20x of a slide scanned at 40x
    /// [default: 256]
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    tile_size: Option<u32>,
    /// The same, whatever file and coordinates say
    #[arg(long, value_name = "N", conflicts_with = "tile_size", value_parser = value_parser!(u32).range(1..))]
    force_tile_size: Option<u32>,
    /// Take features that the file says another encoder than GigaPath's computed
    #[arg(long)]
    any_encoder: bool,
    /// Activations in half precision
    #[arg(long)]
    f16: bool,
    /// Time of the device that a submission may take, in milliseconds [default: 8]
    #[arg(long, value_name = "MS")]
    slice: Option<u64>,
    /// Memory of the device for states, last layers first; twice as much while the slide is encoded again
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    keep: u32,
    /// Where states are exported to, as .npy files
    #[arg(long, value_name = "FOLDER", default_value = ".")]
    export: PathBuf,
    /// Says on stdout what happens and where widgets are, for programs that drive the window
    #[arg(long)]
    trace: bool,
}

/// Sizes of drawn weights.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Size {
    Base,
    Flash,
    Large,
    Wide,
}

/// What the command line and the checkpoint say.
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
    /// Bytes that states may take on the device.
    pub keep_bytes: u64,
    /// Folder for exported states.
    pub export: PathBuf,
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
    /// Reads the checkpoint's sizes, too.
    pub fn new(options: Options) -> program::Result<Self> {
        let source = match (options.weights, options.tiles, options.random) {
            (Some(weights), Some(tiles), _) => Source::Files { weights, tiles },
            (_, _, Some(tiles)) => Source::Drawn(tiles),
            _ => return Err("WEIGHTS and TILES, or --random N, are needed".into()),
        };
        let heads = options.heads;
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
                let mut drawn = match options.size {
                    None | Some(Size::Base) => SlideEncoderConfig::base(),
                    Some(Size::Flash) => SlideEncoderConfig::flash(),
                    Some(Size::Large) => SlideEncoderConfig::large(),
                    Some(Size::Wide) => SlideEncoderConfig::wide(),
                };
                drawn.num_layers = options.layers.unwrap_or(drawn.num_layers);
                match heads {
                    Some(heads) => drawn.with_heads(heads)?,
                    None => drawn,
                }
            }
        };
        if options.f16 {
            config.activations = DType::F16;
        }
        if let Some(max_wsi_size) = options.max_wsi_size {
            config = config.with_max_wsi_size(max_wsi_size)?;
        }
        let slice = options.slice.map(Duration::from_millis);
        Ok(Self {
            source,
            tile_size: match (options.tile_size, options.force_tile_size) {
                (_, Some(pixels)) => TileSizeChoice::Forced(pixels as usize),
                (Some(pixels), None) => TileSizeChoice::Given(pixels as usize),
                (None, None) => TileSizeChoice::OfFile,
            },
            any_encoder: options.any_encoder,
            config,
            slice: slice.unwrap_or(SliceOptions::default().target),
            keep_bytes: u64::from(options.keep) << 20,
            export: options.export,
            trace: options.trace,
        })
    }
}
