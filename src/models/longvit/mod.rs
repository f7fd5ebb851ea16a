//! LongViT, a vision transformer over long sequences of patches (Wang et al. 2023; torchscale, `examples/longvit`).
//!
//! ```text
//! image (3, height, width) -> patches -> linear -> + learned positions -> LongNet encoder -> features -> head
//!
//! features = norm(mean(patches))    fine-tuned models
//! features = mean(norm(patches))    torchscale's pretraining, which has no head for classes
//! ```
//! For images of another size than the model's the table of positions is stretched bicubically, as torch's `interpolate` does it:
//! first along the rows, then along the columns, each a small product on the device.
//!
//! [`LongVit::forward`] is one recording, its results tensors. [`LongVit::encode`] does everything in slices, with progress,
//! its results on the host; a [`LongVitRun`] hands out the recordings of that one by one: patches go up in chunks, and layers
//! run one after the other.

mod images;
mod plan;
mod run;

pub use run::{LongVitResult, LongVitRun};

use std::ops::Range;
use std::sync::Arc;

use crate::config::DilatedAttentionConfig;
use crate::context::Context;
use crate::device::DType;
use crate::error::{Error, Result};
use crate::longnet::{Input, LongNet, LongNetConfig, Output};
use crate::models::recordings;
use crate::nn::{Init, LayerNorm, Linear, ParameterId, ParameterList, Parameters};
use crate::ops::{Matmul, ScaledAdd, mean_of_rows};
#[cfg(doc)]
use crate::recorder::SlicedSubmission;
use crate::recorder::{Recorder, SliceOptions};
use crate::tensor::Tensor;
use crate::weights::WeightSource;

use images::Images;

/// Where the features of an image are normalised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum FeatureNorm {
    /// After the mean of all patches, by a norm called `fc_norm`: the models that torchscale fine-tunes. What lies before it
    /// is called `model.*`.
    #[default]
    OfMean,
    /// Before it, every patch by itself: torchscale's pretraining. The norm is called `backbone.norm`, and what lies before it
    /// `backbone.*`.
    OfPatches,
}

/// Options of a [`LongVit`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct LongVitConfig {
    /// Heads, branches and semantics. Other branches of the same semantics come by
    /// [`with_branches`](DilatedAttentionConfig::with_branches); a configuration made anew needs
    /// [`torchscale`](DilatedAttentionConfig::torchscale) for weights of torchscale's.
    pub attention: DilatedAttentionConfig,
    /// Number of layers.
    pub num_layers: usize,
    /// Elements of a row inside the feed-forward networks.
    pub ffn_dim: usize,
    /// Edge of the square images that positions were learned of, in pixels.
    pub image_size: usize,
    /// Edge of a patch in pixels.
    pub patch_size: usize,
    /// Number of colours.
    pub channels: usize,
    /// Number of classes of the head; without a head the model ends with features.
    pub num_classes: Option<usize>,
    /// Epsilon of the layer norms in the encoder.
    pub encoder_eps: f32,
    /// Where features are normalised.
    pub feature_norm: FeatureNorm,
    /// Epsilon of that norm.
    pub norm_eps: f32,
}

impl LongVitConfig {
    /// The published sizes, fine-tuned to classes: 12 layers, 16 heads of 24, images of 1024 pixels in patches of 32, branches
    /// of 64 to 1024 patches. For images of 4096 pixels and more torchscale has longer segments, which
    /// [`attention`](Self::attention) takes.
    pub fn published(num_classes: usize) -> Self {
        let lengths = [64, 128, 256, 512, 1024];
        let attention = DilatedAttentionConfig::new(16, 24, &lengths, &[1, 2, 4, 8, 16])
            .expect("the sizes of the published model are valid");
        Self {
            attention: attention.torchscale(),
            num_layers: 12,
            ffn_dim: 1536,
            image_size: 1024,
            patch_size: 32,
            channels: 3,
            num_classes: Some(num_classes),
            encoder_eps: 1e-5,
            feature_norm: FeatureNorm::OfMean,
            norm_eps: 1e-5,
        }
    }

    /// The same sizes as the pretraining has them: features without a head, patches normalised before their mean.
    pub fn pretrained() -> Self {
        Self {
            num_classes: None,
            feature_norm: FeatureNorm::OfPatches,
            norm_eps: 1e-6,
            ..Self::published(1)
        }
    }

    /// Patches along the edge of the model's images.
    fn grid(&self) -> usize {
        self.image_size / self.patch_size.max(1)
    }

    fn width(&self) -> usize {
        self.attention.embed_dim()
    }

    fn patch_elements(&self) -> usize {
        self.channels * self.patch_size * self.patch_size
    }

    fn encoder(&self) -> LongNetConfig {
        let mut config =
            LongNetConfig::encoder(self.attention.clone(), self.num_layers, self.ffn_dim);
        config.norm_eps = self.encoder_eps;
        config.final_norm = false;
        config
    }

    fn check(&self) -> Result<()> {
        let sizes = [self.image_size, self.patch_size, self.channels];
        let whole = self.patch_size > 0 && self.image_size.is_multiple_of(self.patch_size);
        if sizes.contains(&0) || !whole {
            return Err(Error::InvalidConfig {
                what: "image, patch and channels",
                given: format!("{sizes:?}"),
                need: "at least 1 each, the image whole patches wide",
            });
        }
        if let Some(classes) = self.num_classes
            && (classes == 0 || u32::try_from(classes).is_err())
        {
            return Err(Error::InvalidConfig {
                what: "num_classes",
                given: classes.to_string(),
                need: "at least 1 and below 2^32, or none for features without a head",
            });
        }
        if !(self.norm_eps > 0.0 && self.norm_eps.is_finite()) {
            return Err(Error::InvalidConfig {
                what: "norm_eps",
                given: self.norm_eps.to_string(),
                need: "positive and finite",
            });
        }
        let fits = |sizes: [usize; 3]| {
            let product = sizes.iter().try_fold(1u32, |product, size| {
                product.checked_mul(u32::try_from(*size).ok()?)
            });
            product.is_some()
        };
        let (patch, grid) = (self.patch_size, self.grid());
        if !fits([self.channels, patch, patch]) || !fits([grid, grid, self.width()]) {
            return Err(Error::InvalidConfig {
                what: "image, patch and channels",
                given: format!("{sizes:?}"),
                need: "small enough that patches and positions have less than 2^32 elements",
            });
        }
        Ok(())
    }
}

/// LongViT, with a head for classification or without.
///
/// ```no_run
/// use dilated_attention::models::longvit::{LongVit, LongVitConfig};
/// use dilated_attention::recorder::SliceOptions;
/// use dilated_attention::{Context, WeightFile};
/// # async fn classify(image: &[f32]) -> dilated_attention::Result<()> {
/// let context = Context::new().await?;
/// let model = LongVit::new(&context, LongVitConfig::published(2))?;
/// let weights = model.load(&context, &WeightFile::open("longvit.safetensors")?)?;
/// let show = |part: f64| println!("{:.0} %", 100.0 * part);
/// let (size, slices) = ([1, 1024, 1024], SliceOptions::default());
/// let result = model.encode(&context, &weights, image, size, &[], slices, show).await?;
/// assert_eq!(result.features.len(), 384);
/// assert_eq!(result.logits.map(|logits| logits.len()), Some(2));
/// # Ok(())
/// # }
/// ```
///
/// The pretrained encoder has features alone. Its file also holds the head that the pretraining projected them with, which is
/// left out knowingly:
///
/// ```no_run
/// # use dilated_attention::models::longvit::{LongVit, LongVitConfig};
/// # use dilated_attention::{Context, WeightFile};
/// # fn load(context: &Context) -> dilated_attention::Result<()> {
/// let model = LongVit::new(context, LongVitConfig::pretrained())?;
/// let file = WeightFile::open("longvit_small_patch32_1024.safetensors")?;
/// let without_head = |name: &str| (!name.starts_with("head.")).then(|| name.to_owned());
/// let weights = file.part("").rename(without_head).load(context, model.parameters())?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct LongVit {
    config: LongVitConfig,
    list: Arc<ParameterList>,
    patch_weight: ParameterId,
    patch_bias: ParameterId,
    positions: ParameterId,
    encoder: LongNet,
    norm: LayerNorm,
    head: Option<Linear>,
}

/// What a [`LongVit`] returns, f32.
#[derive(Clone, Debug)]
pub struct LongVitOutput {
    /// Position vectors as they were added, (1, patches, width).
    pub positions: Tensor,
    /// Of the encoder; its features and its last state are the same.
    pub encoder: Output,
    /// Mean and norm of all patches, (batch, width).
    pub features: Tensor,
    /// The head of that, (batch, classes), if there is one.
    pub logits: Option<Tensor>,
}

impl LongVit {
    /// Declares the parameters, under torchscale's names, and chooses kernels.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] for options that contradict each other.
    pub fn new(context: &Context, config: LongVitConfig) -> Result<Self> {
        config.check()?;
        let (width, patch) = (config.width(), config.patch_size);
        let mut list = ParameterList::new();
        let normal = Init::Normal { std: 0.02 };
        let table = [1, config.grid() * config.grid(), width];
        let (before, norm_name) = match config.feature_norm {
            FeatureNorm::OfMean => ("model.", "fc_norm"),
            FeatureNorm::OfPatches => ("backbone.", "backbone.norm"),
        };
        let positions = list.add(format!("{before}pos_embed"), &table, normal);
        let kernel = [width, config.channels, patch, patch];
        let init = Init::xavier_uniform(config.patch_elements(), width, 1.0);
        let patch_weight = list.add(format!("{before}patch_embed.proj.weight"), &kernel, init);
        let name = format!("{before}patch_embed.proj.bias");
        let patch_bias = list.add(name, &[width], Init::Zeros);
        let inner = config.encoder();
        let mut encoder =
            LongNet::declare(context, &mut list, &format!("{before}encoder."), inner, 0)?;
        let norm = LayerNorm::new(&mut list, norm_name, width, config.norm_eps);
        let head = config.num_classes.map(|classes| {
            let sizes = [width, classes];
            Linear::new(&mut list, "head", sizes, normal, Some(Init::Zeros))
        });
        let list = Arc::new(list);
        encoder.join(&list);
        Ok(Self {
            config,
            list,
            patch_weight,
            patch_bias,
            positions,
            encoder,
            norm,
            head,
        })
    }

    /// The options.
    pub fn config(&self) -> &LongVitConfig {
        &self.config
    }

    /// The parameters' names and shapes.
    pub fn parameters(&self) -> &Arc<ParameterList> {
        &self.list
    }

    /// The weights of a checkpoint, f32, f16 or bf16, strictly: a missing, unknown or misshapen tensor is an error that names
    /// it. `weights` is a [`WeightFile`](crate::WeightFile), or, where the file's names begin otherwise or it holds more, a
    /// [part](crate::WeightFile::part) of one, perhaps [renamed](crate::WeightSource::rename).
    ///
    /// # Errors
    /// As [`WeightSource::load`](crate::WeightSource::load).
    pub fn load<'a>(
        &self,
        context: &Context,
        weights: impl Into<WeightSource<'a>>,
    ) -> Result<Parameters> {
        weights.into().load(context, &self.list)
    }

    /// Records the model over `images`, (batch, channels, height, width) row-major on the host, all of one size. `keep_states`
    /// keeps the states of all layers.
    ///
    /// # Errors
    /// [`Error::ParameterMismatch`] for weights that do not fit; [`Error::InvalidShape`] for images that do not, or are not whole
    /// patches; the errors of leasing and recording.
    pub fn forward(
        &self,
        recorder: &mut Recorder,
        weights: &Parameters,
        images: &[f32],
        [batch, height, width]: [usize; 3],
        keep_states: bool,
    ) -> Result<LongVitOutput> {
        weights.expect_list("weights", &self.list)?;
        let images = Images::new(&self.config, images, [batch, height, width])?;
        let x = self.empty_state(recorder, &images)?;
        self.embed_patches(recorder, weights, &images, 0..images.num_rows(), &x)?;
        let positions = self.add_positions(recorder, weights, &images, &x)?;
        let (input, call) = (Input::Embedded(&x), images.call()?);
        let encoder = self
            .encoder
            .forward(recorder, weights, input, &call, keep_states)?;
        let (features, logits) = self.classify(recorder, weights, &images, &encoder.features)?;
        Ok(LongVitOutput {
            positions,
            encoder,
            features,
            logits,
        })
    }

    /// Runs the model over `images`, as [`forward`](Self::forward) takes them, in slices of the device's time so that others who
    /// use the device are not kept waiting; `progress` is told after each which part of the work is done, from 0 to 1. Nothing
    /// blocks, any executor will do, and dropping the future ends the work after the slice under way. `states` are the states
    /// of patches that are wanted, see [`LongVitResult::states`].
    ///
    /// # Errors
    /// As [`LongVitRun::new`], [`LongVitRun::next_recording`], [`LongVitRun::finish`] and [`SlicedSubmission::advance`].
    #[expect(clippy::too_many_arguments, reason = "the input is two of them")]
    pub async fn encode(
        &self,
        context: &Context,
        weights: &Parameters,
        images: &[f32],
        size: [usize; 3],
        states: &[usize],
        slices: SliceOptions,
        progress: impl FnMut(f64),
    ) -> Result<LongVitResult> {
        let mut run = LongVitRun::new(context, self, weights, images, size, states)?;
        recordings::in_slices(&mut run, slices, progress).await?;
        run.finish().await
    }

    /// As [`encode`](Self::encode), at once and blocking (not in browsers).
    ///
    /// # Errors
    /// As [`LongVitRun::new`], [`LongVitRun::next_recording`], [`LongVitRun::finish`] and [`Recorder::submit`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn encode_blocking(
        &self,
        context: &Context,
        weights: &Parameters,
        images: &[f32],
        size: [usize; 3],
        states: &[usize],
    ) -> Result<LongVitResult> {
        let mut run = LongVitRun::new(context, self, weights, images, size, states)?;
        recordings::at_once(&mut run)?;
        pollster::block_on(run.finish())
    }

    /// What the first layer is given, to be written.
    fn empty_state(&self, recorder: &mut Recorder, images: &Images<'_>) -> Result<Tensor> {
        let dims = [images.batch(), images.tokens(), self.config.width()];
        recorder.empty("activations", &dims, DType::F32)
    }

    /// Records the embeddings of patches to the same `rows` of `x`, still without positions.
    fn embed_patches(
        &self,
        recorder: &mut Recorder,
        weights: &Parameters,
        images: &Images<'_>,
        rows: Range<usize>,
        x: &Tensor,
    ) -> Result<()> {
        let elements = self.config.patch_elements();
        let patches = images.patches(rows.clone());
        let patches = recorder.upload("patches", &[rows.len(), elements], &patches)?;
        let kernel = weights.get(self.patch_weight).matrix();
        let to = x.matrix().slice(rows.start as u64, rows.end as u64)?;
        Matmul::new(patches.matrix(), kernel.reshape(elements as u64)?)
            .transpose_b()
            .with_bias(Some(weights.get(self.patch_bias).vector()))
            .write(recorder, to)
    }

    /// Records that positions are added to all patches; the position vectors.
    fn add_positions(
        &self,
        recorder: &mut Recorder,
        weights: &Parameters,
        images: &Images<'_>,
        x: &Tensor,
    ) -> Result<Tensor> {
        let positions = self.stretched(recorder, weights, images.grid())?;
        for item in 0..images.batch() {
            let (begin, end) = images.rows_of(item);
            let to = x.matrix().slice(begin, end)?;
            ScaledAdd::new(positions.matrix(), 1.0).add(recorder, to, 1.0)?;
        }
        Ok(positions)
    }

    /// Records features of the encoder's output, and logits where there is a head.
    fn classify(
        &self,
        recorder: &mut Recorder,
        weights: &Parameters,
        images: &Images<'_>,
        encoded: &Tensor,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let batch = images.batch();
        let width = self.config.width();
        let features = recorder.empty("features", &[batch, width], DType::F32)?;
        for item in 0..batch {
            let (begin, end) = images.rows_of(item);
            let patches = encoded.matrix().slice(begin, end)?;
            let to = features.matrix().slice(item as u64, item as u64 + 1)?;
            match self.config.feature_norm {
                FeatureNorm::OfMean => {
                    let mean = mean_of_rows(recorder, patches)?;
                    self.norm.forward(recorder, weights, mean.matrix(), to)?;
                }
                FeatureNorm::OfPatches => {
                    let shape = [images.tokens(), width];
                    let normal = recorder.empty("normal patches", &shape, DType::F32)?;
                    self.norm
                        .forward(recorder, weights, patches, normal.matrix())?;
                    let mean = mean_of_rows(recorder, normal.matrix())?;
                    ScaledAdd::new(mean.matrix(), 1.0).write(recorder, to)?;
                }
            }
        }
        let (Some(head), Some(classes)) = (&self.head, self.config.num_classes) else {
            return Ok((features, None));
        };
        let logits = recorder.empty("logits", &[batch, classes], DType::F32)?;
        head.forward(recorder, weights, features.matrix(), logits.matrix())?;
        Ok((features, Some(logits)))
    }

    /// The table of positions of a grid of patches, (1, patches, width).
    fn stretched(
        &self,
        recorder: &mut Recorder,
        weights: &Parameters,
        [rows, columns]: [usize; 2],
    ) -> Result<Tensor> {
        let table = weights.get(self.positions);
        let (from, width) = (self.config.grid(), self.config.width());
        if [rows, columns] == [from, from] {
            return Ok(table.clone());
        }
        // Along the rows: a row of patches is one row of a matrix.
        let along = recorder.upload("stretch", &[rows, from], &bicubic(from, rows))?;
        let tall = recorder.empty("positions", &[rows * from, width], DType::F32)?;
        let row_elements = (from * width) as u64;
        Matmul::new(along.matrix(), table.matrix().reshape(row_elements)?)
            .write(recorder, tall.matrix().reshape(row_elements)?)?;
        // Along the columns, in each row.
        let across = recorder.upload("stretch", &[columns, from], &bicubic(from, columns))?;
        let positions = recorder.empty("positions", &[1, rows * columns, width], DType::F32)?;
        for row in 0..rows {
            let before = ((row * from) as u64, ((row + 1) * from) as u64);
            let after = ((row * columns) as u64, ((row + 1) * columns) as u64);
            Matmul::new(across.matrix(), tall.matrix().slice(before.0, before.1)?)
                .write(recorder, positions.matrix().slice(after.0, after.1)?)?;
        }
        Ok(positions)
    }
}

/// Weights, (to, from), of torch's bicubic interpolation (Keys 1981 with a = -0.75, `align_corners` false) by the scale
/// `(to + 0.1) / from`, which LongViT passes so that rounding cannot lose a patch; edges are repeated.
fn bicubic(from: usize, to: usize) -> Vec<f32> {
    const A: f64 = -0.75;
    let scale = from as f64 / (to as f64 + 0.1);
    let kernel = |distance: f64| match distance.abs() {
        x if x <= 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
        x if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
        _ => 0.0,
    };
    let mut weights = vec![0.0; to * from];
    for (place, row) in weights.chunks_mut(from).enumerate() {
        let centre = (place as f64 + 0.5) * scale - 0.5;
        for tap in -1..=2 {
            let at = centre.floor() + f64::from(tap);
            let index = at.clamp(0.0, (from - 1) as f64) as usize;
            row[index] += kernel(centre - at);
        }
    }
    weights.into_iter().map(|weight| weight as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::bicubic;

    /// Every row of weights adds up to 1, and a table as large as wanted is nearly the identity.
    #[test]
    fn bicubic_weights_are_a_partition_of_one() {
        for (from, to) in [(8, 13), (8, 9), (64, 40), (5, 5), (1, 4)] {
            for row in bicubic(from, to).chunks(from) {
                assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-6);
            }
        }
        let same = bicubic(50, 50);
        assert!((0..50).all(|i| same[i * 50 + i] > 0.9));
    }
}
