//! LongViT, a vision transformer over long sequences of patches (Wang et al. 2023; torchscale, `examples/longvit`).
//!
//! ```text
//! image (3, height, width) -> patches -> linear -> + learned positions -> LongNet encoder -> features -> head
//!
//! features = norm(mean(patches))    fine-tuned models
//! features = mean(norm(patches))    torchscale's pretraining, which has no head for classes
//! ```
//! For images of another size than the model's, the table of positions is resized by bicubic interpolation, as torch's
//! `interpolate` does: first along the rows, then along the columns, each as a small matrix product on the device.
//!
//! A [`LongVit`] is loaded, planned and run by the methods of [`StagedModel`]. Its input are [`Images`], or for plans their size.
//! [`LongVitOutputs`] asks for optional outputs; the results are a [`LongVitOutput`] on the host. [`LongVit::forward`] does
//! everything in one recording, with tensors as results.

mod config;
mod images;
mod stages;

pub use config::{FeatureNorm, LongVitConfig};
pub use images::Images;
pub use stages::{LongVitOutput, LongVitOutputs};

use std::ops::Range;
use std::sync::Arc;

use crate::context::Context;
use crate::device::DType;
use crate::error::Result;
use crate::longnet::{Call, Input, LongNet, Output};
use crate::models::StagedModel;
use crate::models::activations::upload;
use crate::models::staged::Outline;
use crate::nn::{Init, LayerNorm, Linear, ParameterId, ParameterList, Parameters};
use crate::ops::{Matmul, ScaledAdd, convert, mean_of_rows};
use crate::recorder::Recorder;
use crate::tensor::{Tensor, zeros};

use images::Patches;
use stages::ImageStages;

/// LongViT, with a head for classification or without.
///
/// ```no_run
/// use dilated_attention::models::StagedModel;
/// use dilated_attention::models::longvit::{Images, LongVit, LongVitConfig, LongVitOutputs};
/// use dilated_attention::{Context, WeightFile};
/// # fn classify(pixels: &[f32]) -> dilated_attention::Result<()> {
/// let context = Context::new_blocking()?;
/// let model = LongVit::new(&context, LongVitConfig::published(2))?;
/// let weights = model.load(&context, &WeightFile::open("longvit.safetensors")?)?;
/// let image = Images { pixels, size: [1, 1024, 1024] };
/// let output = model.run(&context, &weights, image, &LongVitOutputs::default())?.blocking()?;
/// assert_eq!(output.features.len(), 384);
/// assert_eq!(output.logits.map(|logits| logits.len()), Some(2));
/// # Ok(())
/// # }
/// ```
///
/// The pretrained encoder has features only. Its file also holds a projection head of the pretraining, which has to be left out:
///
/// ```no_run
/// # use dilated_attention::models::StagedModel;
/// # use dilated_attention::models::longvit::{LongVit, LongVitConfig};
/// # use dilated_attention::{Context, WeightFile};
/// # fn load(context: &Context) -> dilated_attention::Result<()> {
/// let model = LongVit::new(context, LongVitConfig::pretrained())?;
/// let file = WeightFile::open("longvit_small_patch32_1024.safetensors")?;
/// let without_head = |name: &str| (!name.starts_with("head.")).then(|| name.to_owned());
/// let weights = file.part("").with_rename(without_head).load(context, model.parameters())?;
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

/// Results of a [`forward`](LongVit::forward), on the device.
#[derive(Clone, Debug)]
pub struct LongVitTensors {
    /// Position vectors that were added, (1, patches, width), of the type of the model's activations.
    pub positions: Tensor,
    /// Output of the encoder. Its features are the same as its last state.
    pub encoder: Output,
    /// Features of each image, (batch, width), f32.
    pub features: Tensor,
    /// Logits, (batch, classes), f32; `None` for a model without a head.
    pub logits: Option<Tensor>,
}

impl StagedModel for LongVit {
    type Config = LongVitConfig;
    type Input<'a> = Images<'a>;
    /// Number of images, height and width of each in pixels.
    type InputSize<'a> = [usize; 3];
    type Outputs = LongVitOutputs;
    type Output = LongVitOutput;
    type Stages<'a> = ImageStages<'a>;

    fn new(context: &Context, config: LongVitConfig) -> Result<Self> {
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

    fn config(&self) -> &LongVitConfig {
        &self.config
    }

    fn parameters(&self) -> &Arc<ParameterList> {
        &self.list
    }

    fn stages<'a>(
        &self,
        images: Self::Input<'a>,
        outputs: &LongVitOutputs,
    ) -> Result<(Outline, ImageStages<'a>)> {
        ImageStages::new(self, images, outputs)
    }

    fn with_zeros<T>(
        config: &LongVitConfig,
        size @ [batch, height, width]: [usize; 3],
        with: impl FnOnce(Self::Input<'_>) -> Result<T>,
    ) -> Result<T> {
        let elements = [batch, config.channels, height, width]
            .iter()
            .try_fold(1usize, |product, size| product.checked_mul(*size));
        let given = format!("{batch} of {height} x {width}");
        let pixels = &zeros("images", given, elements)?;
        with(Images { pixels, size })
    }
}

impl LongVit {
    /// Records the model over `images`. With `keep_states`, the states of all layers are returned, too.
    ///
    /// # Errors
    /// [`Error::ParameterMismatch`](crate::Error::ParameterMismatch) for weights that do not fit;
    /// [`Error::InvalidShape`](crate::Error::InvalidShape) for images that do not fit or do not consist of whole patches; the
    /// errors of leasing and recording.
    pub fn forward(
        &self,
        recorder: &mut Recorder,
        weights: &Parameters,
        images: Images<'_>,
        keep_states: bool,
    ) -> Result<LongVitTensors> {
        weights.expect_list("weights", &self.list)?;
        let patches = Patches::new(&self.config, images)?;
        let x = self.empty_state(recorder, &patches)?;
        self.embed_patches(recorder, weights, &patches, 0..patches.num_rows(), &x)?;
        let positions = self.add_positions(recorder, weights, &patches, &x)?;
        let (input, call) = (Input::Embedded(&x), Call::new(patches.shape()?));
        let encoder = self
            .encoder
            .forward(recorder, weights, input, &call, keep_states)?;
        let (features, logits) = self.classify(recorder, weights, &patches, &encoder.features)?;
        Ok(LongVitTensors {
            positions,
            encoder,
            features,
            logits,
        })
    }

    /// A tensor for the input of the first layer.
    fn empty_state(&self, recorder: &mut Recorder, patches: &Patches<'_>) -> Result<Tensor> {
        let dims = [patches.batch(), patches.tokens(), self.config.width()];
        recorder.empty("activations", &dims, self.config.activations)
    }

    /// Records the embeddings of the patches `rows`, written to the same rows of `x`, without positions.
    fn embed_patches(
        &self,
        recorder: &mut Recorder,
        weights: &Parameters,
        patches: &Patches<'_>,
        rows: Range<usize>,
        x: &Tensor,
    ) -> Result<()> {
        let elements = self.config.patch_elements();
        let (shape, values) = ([rows.len(), elements], patches.values(rows.clone()));
        let patches = upload(
            recorder,
            "patches",
            &shape,
            &values,
            self.config.activations,
        )?;
        let kernel = weights.get(self.patch_weight).matrix();
        let to = x.matrix().slice(rows)?;
        Matmul::new(patches.matrix(), kernel.reshape(elements)?)
            .with_transposed_b()
            .with_bias(Some(weights.get(self.patch_bias).vector()))
            .write(recorder, to)
    }

    /// Records that position vectors are added to all patches, and returns them.
    fn add_positions(
        &self,
        recorder: &mut Recorder,
        weights: &Parameters,
        patches: &Patches<'_>,
        x: &Tensor,
    ) -> Result<Tensor> {
        let positions = self.stretched(recorder, weights, patches.grid())?;
        let positions = convert(recorder, &positions, self.config.activations)?;
        for item in 0..patches.batch() {
            let to = x.matrix().slice(patches.rows_of(item))?;
            ScaledAdd::new(positions.matrix(), 1.0).add(recorder, to, 1.0)?;
        }
        Ok(positions)
    }

    /// Records the features of the encoder's output, and the logits if there is a head.
    fn classify(
        &self,
        recorder: &mut Recorder,
        weights: &Parameters,
        patches: &Patches<'_>,
        encoded: &Tensor,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let batch = patches.batch();
        let width = self.config.width();
        let features = recorder.empty("features", &[batch, width], DType::F32)?;
        for item in 0..batch {
            let of_item = encoded.matrix().slice(patches.rows_of(item))?;
            let to = features.matrix().slice(item..item + 1)?;
            match self.config.feature_norm {
                FeatureNorm::OfMean => {
                    let mean = mean_of_rows(recorder, of_item)?;
                    self.norm.forward(recorder, weights, mean.matrix(), to)?;
                }
                FeatureNorm::OfPatches => {
                    let shape = [patches.tokens(), width];
                    let normal = recorder.empty("normal patches", &shape, encoded.dtype())?;
                    self.norm
                        .forward(recorder, weights, of_item, normal.matrix())?;
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

    /// Records the table of positions resized to a grid of patches, (1, patches, width), f32.
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
        // First the number of rows of the grid changes. Each row of patches is one row of a matrix here.
        let along = recorder.upload("stretch", &[rows, from], &bicubic(from, rows))?;
        let row_elements = from * width;
        let tall = recorder.empty("positions", &[rows, row_elements], DType::F32)?;
        Matmul::new(along.matrix(), table.matrix().reshape(row_elements)?)
            .write(recorder, tall.matrix())?;
        let tall = tall.matrix().reshape(width)?;
        // Then the number of columns changes, in each row of the grid.
        let across = recorder.upload("stretch", &[columns, from], &bicubic(from, columns))?;
        let positions = recorder.empty("positions", &[1, rows * columns, width], DType::F32)?;
        for row in 0..rows {
            let before = tall.slice(row * from..(row + 1) * from)?;
            let after = positions
                .matrix()
                .slice(row * columns..(row + 1) * columns)?;
            Matmul::new(across.matrix(), before).write(recorder, after)?;
        }
        Ok(positions)
    }
}

/// Weights, (to, from), of torch's bicubic interpolation (Keys 1981 with a = -0.75, `align_corners` false). The scale is `(to +
/// 0.1) / from`, which LongViT passes so that no patch is lost by rounding. Values beyond the edge repeat the edge.
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

    /// Every row of weights sums to 1, and for a table of the same size the weights are nearly the identity.
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
