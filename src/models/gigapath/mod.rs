//! The slide encoder of prov-gigapath (Xu et al. 2024, `gigapath/slide_encoder.py`).
//!
//! ```text
//! features (tiles, 1536) -> linear -> + position vector of (x, y) -> [CLS, tiles] -> LongNet encoder -> states
//! states -> mean of tiles, or CLS -> norm -> embedding of the slide
//! ```
//! A [`SlideEncoder`] is plain data and pipelines; weights come from [`SlideEncoder::load`]. [`SlideEncoder::encode`] does
//! everything at once; a [`SlideRun`] hands out the recordings of the work one by one, for applications that submit them when
//! it suits them, show progress and may stop in between.
//!
//! **Positions** are not in the checkpoint. A tile at (x, y) lies in cell `(floor(x / tile_size), floor(y / tile_size))` of a
//! grid of 1000 x 1000, and its position vector is `[sin(y w), cos(y w), sin(x w), cos(x w)]` of the cell, `w_i = 10000^(-4i/D)`.
//! The two halves are rows of one small table, computed in f64: upstream builds a table of all cells, 3 GB.
//!
//! **Which embedding.** Both are returned: of the mean of all tiles ([`SlideOutput::pool`]) and of the CLS token
//! ([`SlideOutput::cls`]). The authors' own examples pool, with the note that the CLS token is not trained in the slide
//! encoder's pretraining; their fine-tuning script trains and uses it.
//!
//! **Memory.** Features go up in chunks of rows, the encoder runs layer by layer, and of the states only what
//! [`SlideOutputs`] asks for is kept, so that the peak is five activations of the slide and the weights.
//! [`SlideEncoder::plan`] tells it to the byte without a device.
//!
//! **Semantics.** Trained weights need those of torchscale, the default: attention also attends to the zeros that pad
//! segments, and moves rows where a dilation rate does not divide a segment length.
//! [`SlideEncoderConfig::masked`] has neither, for models trained with this crate.

mod config;
mod outputs;
mod plan;
mod run;
mod slide;

pub use config::{SlideEncoderConfig, segment_lengths};
pub use outputs::{LayerEmbedding, SlideAttention, SlideOutput, SlideOutputs, SlideStates};
pub use plan::SlidePlan;
pub use run::SlideRun;
pub use slide::{Cell, Slide};

use std::sync::Arc;

use crate::context::Context;
use crate::error::Origin;
use crate::error::Result;
use crate::longnet::LongNet;
use crate::models::recordings;
use crate::nn::{Init, LayerNorm, Linear, ParameterId, ParameterList, Parameters};
use crate::recorder::SliceOptions;
#[cfg(doc)]
use crate::recorder::SlicedSubmission;
use crate::weights::{WeightFile, WeightSource, WeightsError};

/// The slide encoder.
///
/// ```no_run
/// use dilated_attention::models::gigapath::{Slide, SlideEncoder, SlideEncoderConfig, SlideOutputs};
/// use dilated_attention::{Context, WeightFile};
/// let context = Context::headless()?;
/// let encoder = SlideEncoder::new(&context, SlideEncoderConfig::base())?;
/// let weights = encoder.load(&context, &WeightFile::open("slide.safetensors")?)?;
/// let slide = Slide { features: &vec![0.1; 3 * 1536], coords: &[[0.0, 0.0], [256.0, 0.0], [0.0, 256.0]] };
/// let output = encoder.encode_blocking(&context, &weights, &[slide], &SlideOutputs::default())?;
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
    /// Declares the parameters and chooses kernels.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`](crate::Error::InvalidConfig) for options that contradict each other.
    pub fn new(context: &Context, config: SlideEncoderConfig) -> Result<Self> {
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

    /// The options.
    pub fn config(&self) -> &SlideEncoderConfig {
        &self.config
    }

    /// The parameters' names and shapes: those of the checkpoint.
    pub fn parameters(&self) -> &Arc<ParameterList> {
        &self.list
    }

    /// The weights of a checkpoint, f32, f16 or bf16, strictly: a missing, unknown or misshapen tensor is an error that names
    /// it. `weights` is a file, or a [part](WeightFile::part) of one, where names have a prefix. A checkpoint of PyTorch becomes such a file by
    /// `safetensors.torch.save_file(torch.load(path, map_location="cpu")["model"], "slide.safetensors")`.
    ///
    /// # Errors
    /// As [`WeightSource::load`].
    pub fn load<'a>(
        &self,
        context: &Context,
        weights: impl Into<WeightSource<'a>>,
    ) -> Result<Parameters> {
        weights.into().load(context, &self.list)
    }

    /// The slide encoder in a file, whatever prefix its names have there: to [make a configuration
    /// of](SlideEncoderConfig::from_weights) and to [load](Self::load).
    ///
    /// # Errors
    /// As [`WeightFile::part_with`](crate::WeightFile::part_with).
    pub fn weights_in(file: &WeightFile) -> Result<WeightSource<'_>, WeightsError> {
        file.part_with("patch_embed.proj.weight")
    }

    /// Weights drawn at random, for tests and measurements, submitted; `seed` decides the draws.
    ///
    /// # Errors
    /// Those of leasing, uploading and submitting.
    pub fn initial_weights(&self, context: &Context, seed: u64) -> Result<Parameters> {
        Parameters::initial(context, &self.list, seed)
    }

    /// Encodes `slides`, in slices of the device's time so that others who use the device are not kept waiting; `progress` is
    /// told after each which part of the work is done, from 0 to 1. Nothing blocks, any executor will do, and dropping the future
    /// ends the work after the slice under way. What it keeps on the device, [`SlideRun`] says.
    ///
    /// # Errors
    /// As [`SlideRun::new`], [`SlideRun::next_recording`], [`SlideRun::finish`] and [`SlicedSubmission::advance`]. For a result
    /// that is not finite, [`find_nonfinite`](Self::find_nonfinite) tells tile and layer.
    pub async fn encode(
        &self,
        context: &Context,
        weights: &Parameters,
        slides: &[Slide<'_>],
        outputs: &SlideOutputs,
        slices: SliceOptions,
        progress: impl FnMut(f64),
    ) -> Result<SlideOutput> {
        let mut run = SlideRun::new(context, self, weights, slides, outputs)?;
        recordings::in_slices(&mut run, slices, progress).await?;
        run.finish().await
    }

    /// Where values that are not finite arise: encodes `slides` once more, state by state, up to the first that holds some; `None`
    /// when none does. Submitted in slices; one state at a time is on the host.
    ///
    /// # Errors
    /// As [`encode`](Self::encode), but for features and results that are not finite.
    pub async fn find_nonfinite(
        &self,
        context: &Context,
        weights: &Parameters,
        slides: &[Slide<'_>],
        slices: SliceOptions,
    ) -> Result<Option<Origin>> {
        let outputs = SlideOutputs {
            states: (0..=self.config.num_layers).collect(),
            allow_nonfinite: true,
            ..SlideOutputs::default()
        };
        let mut run = SlideRun::new(context, self, weights, slides, &outputs)?;
        while let Some(recorder) = run.next_recording()? {
            recorder.submit_in_slices(slices).run(|_| ()).await?;
            if let Some(origin) = run.origin().await? {
                return Ok(Some(origin));
            }
        }
        Ok(None)
    }

    /// As [`encode`](Self::encode), at once and blocking (not in browsers).
    ///
    /// # Errors
    /// As [`SlideRun::new`], [`SlideRun::next_recording`], [`SlideRun::finish`] and [`Recorder::submit`](crate::Recorder::submit).
    #[cfg(not(target_arch = "wasm32"))]
    pub fn encode_blocking(
        &self,
        context: &Context,
        weights: &Parameters,
        slides: &[Slide<'_>],
        outputs: &SlideOutputs,
    ) -> Result<SlideOutput> {
        let mut run = SlideRun::new(context, self, weights, slides, outputs)?;
        recordings::at_once(&mut run)?;
        pollster::block_on(run.finish())
    }
}
