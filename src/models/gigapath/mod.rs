//! The slide encoder of prov-gigapath (Xu et al. 2024, `gigapath/slide_encoder.py`).
//!
//! ```text
//! features (tiles, 1536) -> linear -> + position vector of (x, y) -> [CLS, tiles] -> LongNet encoder -> states
//! states -> mean of tiles, or CLS -> norm -> embedding of the slide
//! ```
//! A [`SlideEncoder`] is loaded, planned and run by the methods of [`StagedModel`]. Its input are [`Slide`]s, or for plans the
//! number of tiles of each. [`SlideOutputs`] asks for optional outputs; the results are a [`SlideOutput`].
//!
//! **Positions** are not in the checkpoint. A tile at (x, y) lies in cell `(floor(x / tile_size), floor(y / tile_size))` of a grid
//! of 1000 x 1000 cells. Its position vector is `[sin(y w), cos(y w), sin(x w), cos(x w)]` with the coordinates of the cell and
//! `w_i = 10000^(-4i/D)`. Each half of the vector is a row of one small table, computed in f64. (Upstream builds a table of all
//! cells, 3 GB.)
//!
//! **Which embedding.** Two are returned: of the mean of all tiles ([`SlideOutput::pool`]), and of the CLS token
//! ([`SlideOutput::cls`]). The authors' own examples use the mean, with the note that the CLS token is not trained in the
//! pretraining of the slide encoder. Their fine-tuning script trains and uses the CLS token.
//!
//! **Memory.** Features are uploaded in chunks of rows, the encoder runs layer by layer, and only the states that [`SlideOutputs`]
//! asks for are kept. So the peak is the weights and five activations of the slide. [`SlideEncoder::plan`](StagedModel::plan) gives
//! it to the byte, without a device.
//!
//! **Semantics.** The published weights need the semantics of torchscale, which are the default: attention also attends to the
//! zeros that pad segments, and moves rows where a dilation rate does not divide a segment length.
//! [`SlideEncoderConfig::with_masked_padding`] does neither, for models trained with this crate.

mod config;
mod outputs;
mod slide;
mod stages;

pub use config::{SlideEncoderConfig, segment_lengths};
pub use outputs::{LayerEmbedding, SlideAttention, SlideOutput, SlideOutputs};
pub use slide::{Cell, Slide};

use std::sync::Arc;

use crate::context::Context;
use crate::error::Result;
use crate::longnet::LongNet;
use crate::models::StagedModel;
use crate::models::staged::Outline;
use crate::nn::{Init, LayerNorm, Linear, ParameterId, ParameterList};
use crate::tensor::zeros;
use crate::weights::{WeightFile, WeightSource, WeightsError};

use stages::SlideStages;

/// The slide encoder. To make a file for [`load`](StagedModel::load) from a PyTorch checkpoint, run
/// `safetensors.torch.save_file(torch.load(path, map_location="cpu")["model"], "slide.safetensors")` in Python.
///
/// ```no_run
/// use dilated_attention::models::StagedModel;
/// use dilated_attention::models::gigapath::{Slide, SlideEncoder, SlideEncoderConfig, SlideOutputs};
/// use dilated_attention::{Context, WeightFile};
/// let context = Context::new_blocking()?;
/// let encoder = SlideEncoder::new(&context, SlideEncoderConfig::base())?;
/// let weights = encoder.load(&context, &WeightFile::open("slide.safetensors")?)?;
/// let slide = Slide { features: &vec![0.1; 3 * 1536], coords: &[[0.0, 0.0], [256.0, 0.0], [0.0, 256.0]] };
/// let output = encoder.run(&context, &weights, &[slide], &SlideOutputs::default())?.blocking()?;
/// assert_eq!(output.pool.len(), 768);
/// # Ok::<(), dilated_attention::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct SlideEncoder {
    config: SlideEncoderConfig,
    list: Arc<ParameterList>,
    cls_token: ParameterId,
    patch_embed: Linear,
    encoder: LongNet,
    norm: LayerNorm,
}

impl SlideEncoder {
    /// The tensors of a slide encoder in a file, whatever prefix their names have there. Use the result to [make a
    /// configuration](SlideEncoderConfig::from_weights) and to [load](StagedModel::load) weights.
    ///
    /// # Errors
    /// As [`WeightFile::part_with`](crate::WeightFile::part_with).
    pub fn weights_in(file: &WeightFile) -> Result<WeightSource<'_>, WeightsError> {
        file.part_with("patch_embed.proj.weight")
    }
}

impl StagedModel for SlideEncoder {
    type Config = SlideEncoderConfig;
    /// The slides of a batch. A run over them can also fail with [`Error::TileOutOfGrid`](crate::Error::TileOutOfGrid) for a tile
    /// outside of the grid, and with [`Error::FeatureNotFinite`](crate::Error::FeatureNotFinite) for features that are not finite
    /// in the type of the activations. With several slides, these errors are inside [`Error::InSlide`](crate::Error::InSlide).
    type Input<'a> = &'a [Slide<'a>];
    /// Number of tiles of each slide.
    type InputSize<'a> = &'a [usize];
    type Outputs = SlideOutputs;
    type Output = SlideOutput;
    type Stages<'a> = SlideStages<'a>;

    fn new(context: &Context, config: SlideEncoderConfig) -> Result<Self> {
        config.check()?;
        let mut list = ParameterList::new();
        let width = config.width();
        let cls_token = list.add(
            "cls_token".to_owned(),
            &[1, 1, width],
            Init::Normal { std: 0.02 },
        );
        let sizes = [config.feature_dim, width];
        let init = Init::xavier_uniform(config.feature_dim, width, 1.0);
        let patch_embed = Linear::new(
            &mut list,
            "patch_embed.proj",
            sizes,
            init,
            Some(Init::Zeros),
        );
        let mut encoder = LongNet::declare(context, &mut list, "encoder.", config.encoder(), 0)?;
        let norm = LayerNorm::new(&mut list, "norm", width, config.norm_eps);
        let list = Arc::new(list);
        encoder.join(&list);
        Ok(Self {
            config,
            list,
            cls_token,
            patch_embed,
            encoder,
            norm,
        })
    }

    fn config(&self) -> &SlideEncoderConfig {
        &self.config
    }

    fn parameters(&self) -> &Arc<ParameterList> {
        &self.list
    }

    fn stages<'a>(
        &self,
        slides: Self::Input<'a>,
        outputs: &SlideOutputs,
    ) -> Result<(Outline, SlideStages<'a>)> {
        SlideStages::new(self, slides, outputs)
    }

    fn with_zeros<T>(
        config: &SlideEncoderConfig,
        tiles: &[usize],
        with: impl FnOnce(Self::Input<'_>) -> Result<T>,
    ) -> Result<T> {
        let longest = tiles.iter().copied().max().unwrap_or(0);
        let (what, elements) = ("number of tiles", longest.checked_mul(config.feature_dim));
        let features = zeros(what, longest, elements)?;
        let coords = zeros(what, longest, Some(longest))?;
        let slides = tiles.iter().map(|&tiles| Slide {
            features: &features[..tiles * config.feature_dim],
            coords: &coords[..tiles],
        });
        with(&slides.collect::<Vec<_>>())
    }
}
