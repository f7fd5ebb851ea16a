//! Steps of training.

use super::{AdamWOptions, Batch, LearningRate, Optimizer};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::longnet::{Call, Input, LongNet, Recompute};
use crate::nn::Parameters;
use crate::ops::{Labels, TokenIds, sum};
use crate::readback::Download;
use crate::recorder::Recorder;
use crate::tensor::Tensor;

/// How to train.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainingOptions {
    /// The optimiser's numbers.
    pub optimizer: AdamWOptions,
    /// The rate of each step.
    pub learning_rate: LearningRate,
    /// What the backward computes again.
    pub recompute: Recompute,
    /// Decides what is dropped, and how weights start.
    pub seed: u64,
}

impl TrainingOptions {
    /// With `learning_rate`, and AdamW's defaults.
    pub fn new(learning_rate: LearningRate) -> Self {
        Self {
            optimizer: AdamWOptions::default(),
            learning_rate,
            recompute: Recompute::default(),
            seed: 0,
        }
    }

    /// Whether `model` can be trained so.
    pub(super) fn check(&self, model: &LongNet) -> Result<()> {
        self.optimizer.check()?;
        self.learning_rate.check()?;
        model.expect_trainable()?;
        model.expect_causal("training on next tokens")?;
        vocab_size(model).map(drop)
    }
}

/// A language model in training: its weights and all that their next step depends on. No token of the model may see those
/// after it; models of other kinds (masked ones, classifiers) train with the parts that the [module](super) names.
///
/// ```no_run
/// use dilated_attention::longnet::{LongNet, LongNetConfig, OutputProjection};
/// use dilated_attention::training::{Batch, LearningRate, Trainer, TrainingOptions};
/// use dilated_attention::{Context, DilatedAttentionConfig};
/// let context = Context::new_blocking()?;
/// let attention = DilatedAttentionConfig::new(4, 32, &[128, 512], &[1, 4])?;
/// let mut config = LongNetConfig::decoder(attention, 2, 512);
/// config.vocab_size = Some(256);
/// config.output_projection = OutputProjection::Own;
/// let model = LongNet::new(&context, config)?;
/// let options = TrainingOptions::new(LearningRate::Constant(1e-3));
/// let mut trainer = Trainer::new(&context, model, options)?;
/// let text: Vec<u32> = include_bytes!("mod.rs").iter().map(|byte| u32::from(*byte)).collect();
/// let batch = Batch::next_tokens(&[&text[..513]])?;
/// for _ in 0..10 {
///     let report = trainer.step(&[batch.clone()])?.wait()?;
///     println!("{}: {:.3} bits a byte", report.step, report.loss / 2f32.ln());
/// }
/// trainer.save("model.safetensors", &[])?;
/// # Ok::<(), dilated_attention::Error>(())
/// ```
#[derive(Debug)]
pub struct Trainer {
    pub(super) context: Context,
    pub(super) model: LongNet,
    pub(super) options: TrainingOptions,
    pub(super) optimizer: Optimizer,
    pub(super) steps: u64,
}

impl Trainer {
    /// A model with fresh weights.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] for a model without tokens, output projection or causal mask, and for numbers that mean
    /// nothing; those of leasing and uploading.
    pub fn new(context: &Context, model: LongNet, options: TrainingOptions) -> Result<Self> {
        options.check(&model)?;
        let weights = model.initial_weights(context, options.seed)?;
        Self::with_weights(context, model, weights, options)
    }

    /// A model with given weights, which the steps change.
    ///
    /// # Errors
    /// [`Error::ParameterMismatch`] for weights of another model, and as [`new`](Self::new).
    pub fn with_weights(
        context: &Context,
        model: LongNet,
        weights: Parameters,
        options: TrainingOptions,
    ) -> Result<Self> {
        weights.expect_list("weights", model.parameters())?;
        let mut recorder = context.recorder("optimizer");
        let optimizer = Optimizer::new(&mut recorder, weights)?;
        recorder.submit()?;
        Self::assemble(context, model, options, optimizer, 0)
    }

    pub(super) fn assemble(
        context: &Context,
        model: LongNet,
        options: TrainingOptions,
        optimizer: Optimizer,
        steps: u64,
    ) -> Result<Self> {
        options.check(&model)?;
        Ok(Self {
            context: context.clone(),
            model,
            options,
            optimizer,
            steps,
        })
    }

    /// The model.
    pub fn model(&self) -> &LongNet {
        &self.model
    }

    /// The weights as the last step left them.
    pub fn weights(&self) -> &Parameters {
        self.optimizer.weights()
    }

    /// Steps done.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// How it is trained.
    pub fn options(&self) -> &TrainingOptions {
        &self.options
    }

    /// Submits one step over all of `batches`. Its loss can be waited for, or not: steps may be submitted one after the other.
    ///
    /// # Errors
    /// [`Error::TokenOutOfRange`] names a token or label beyond the vocabulary, [`Error::InvalidShape`] when there is no batch or
    /// no label; the errors of planning, leasing, recording and submitting. Nothing has changed then.
    pub fn step(&mut self, batches: &[Batch]) -> Result<PendingStep> {
        let mut recorder = self.context.recorder("training step");
        let pending = self.record(&mut recorder, batches)?;
        recorder.submit()?;
        self.steps += 1;
        Ok(pending)
    }

    /// Records the step after the last one done.
    pub(super) fn record(&self, recorder: &mut Recorder, batches: &[Batch]) -> Result<PendingStep> {
        let step = self.steps + 1;
        let (weights, gradients) = (self.optimizer.weights(), self.optimizer.gradients());
        gradients.clear(recorder);
        let (mut losses, mut counted) = (Vec::new(), 0);
        for (index, batch) in (0..).zip(batches) {
            let (tokens, labels) = self.upload(recorder, batch)?;
            let call = Call::new(batch.shape().clone());
            // Steps and their batches draw from streams of their own.
            let seed = self.options.seed ^ (step << 20 | index);
            let (features, saved) = self.model.forward_saving(
                recorder,
                weights,
                Input::Tokens(&tokens),
                &call,
                Some(seed),
                self.options.recompute,
            )?;
            // Gradients of sums over labels: their number is known at the end.
            let sums = Some((gradients, 1.0));
            let loss = self
                .model
                .loss(recorder, weights, &features, &labels, sums)?;
            drop(features);
            if let Some(dfeatures) = loss.dfeatures {
                let sets = [weights, gradients];
                self.model
                    .backward(recorder, sets, saved, &dfeatures, None)?;
            }
            losses.push(loss.total);
            counted += labels.counted() as u64;
        }
        let counted = at_least_one_label(counted)?;
        let learning_rate = self.options.learning_rate.at(step);
        let scale = (1.0 / counted as f64) as f32;
        let norm_squared = self.optimizer.update(
            recorder,
            &self.options.optimizer,
            (step, learning_rate),
            scale,
        )?;
        Ok(PendingStep {
            step,
            learning_rate,
            labels: counted,
            loss: download_sum(recorder, &losses)?,
            norm_squared: Some(recorder.download(&norm_squared)?),
        })
    }

    fn upload(&self, recorder: &mut Recorder, batch: &Batch) -> Result<(TokenIds, Labels)> {
        let vocab = vocab_size(&self.model)?;
        Ok((
            TokenIds::upload(recorder, batch.tokens(), vocab)?,
            Labels::upload(recorder, batch.labels(), vocab)?,
        ))
    }

    /// Submits the loss of `batches` under the weights of now, without dropout and without a step.
    ///
    /// # Errors
    /// As [`step`](Self::step).
    pub fn evaluate(&self, batches: &[Batch]) -> Result<PendingStep> {
        let mut recorder = self.context.recorder("evaluation");
        let weights = self.optimizer.weights();
        let (mut losses, mut counted) = (Vec::new(), 0);
        for batch in batches {
            let (tokens, labels) = self.upload(&mut recorder, batch)?;
            let call = Call::new(batch.shape().clone());
            let input = Input::Tokens(&tokens);
            let output = self
                .model
                .forward(&mut recorder, weights, input, &call, false)?;
            let loss = self
                .model
                .loss(&mut recorder, weights, &output.features, &labels, None)?;
            losses.push(loss.total);
            counted += labels.counted() as u64;
        }
        let labels = at_least_one_label(counted)?;
        let loss = download_sum(&mut recorder, &losses)?;
        recorder.submit()?;
        Ok(PendingStep {
            step: self.steps,
            learning_rate: 0.0,
            labels,
            loss,
            norm_squared: None,
        })
    }
}

fn vocab_size(model: &LongNet) -> Result<usize> {
    let need = "a model with vocab_size and an output projection";
    let missing = |given: &str| Error::InvalidConfig {
        what: "model to be trained",
        given: given.to_owned(),
        need,
    };
    if model.config().output_projection == Default::default() {
        return Err(missing("one without output projection"));
    }
    model
        .config()
        .vocab_size
        .ok_or_else(|| missing("one without vocab_size"))
}

fn at_least_one_label(counted: u64) -> Result<u64> {
    match counted {
        0 => Err(Error::InvalidShape {
            what: "labels",
            given: "none, or only ignored ones".to_owned(),
            need: "one label or more that is not IGNORED_LABEL".to_owned(),
        }),
        _ => Ok(counted),
    }
}

fn download_sum(recorder: &mut Recorder, losses: &[Tensor]) -> Result<Download<f32>> {
    let losses: Vec<&Tensor> = losses.iter().collect();
    let total = sum(recorder, &losses)?;
    recorder.download(&total)
}

/// A step (or an evaluation) that was submitted.
#[derive(Debug)]
#[must_use = "only waiting tells what came of it"]
pub struct PendingStep {
    step: u64,
    learning_rate: f32,
    labels: u64,
    loss: Download<f32>,
    norm_squared: Option<Download<f32>>,
}

/// What a step (or an evaluation) was.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// Its number, from 1; of an evaluation that of the last step.
    pub step: u64,
    /// Mean cross-entropy over all labels, in nats, before the step.
    pub loss: f32,
    /// Norm of the gradient of that mean, before it is clipped; 0 for an evaluation.
    pub gradient_norm: f32,
    /// The learning rate; 0 for an evaluation.
    pub learning_rate: f32,
    /// Labels that counted.
    pub labels: u64,
}

impl PendingStep {
    /// Blocks until it is done.
    ///
    /// # Errors
    /// [`Error::NonFiniteStep`] for a loss or gradient that is not finite, which says what became of the weights: training may
    /// go on with the next step. As [`Download::wait`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn wait(self) -> Result<StepReport> {
        let loss = self.loss.wait()?;
        let norm_squared = self.norm_squared.as_ref().map(Download::wait).transpose()?;
        StepReport::new(
            (self.step, self.learning_rate, self.labels),
            &loss,
            norm_squared.as_deref(),
        )
    }

    /// Awaits its end, on any executor.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub async fn report(self) -> Result<StepReport> {
        let loss = self.loss.await?;
        let norm_squared = match self.norm_squared {
            None => None,
            Some(norm_squared) => Some(norm_squared.await?),
        };
        StepReport::new(
            (self.step, self.learning_rate, self.labels),
            &loss,
            norm_squared.as_deref(),
        )
    }
}

impl StepReport {
    /// From sums over labels, one element each.
    fn new(
        (step, learning_rate, labels): (u64, f32, u64),
        loss: &[f32],
        norm_squared: Option<&[f32]>,
    ) -> Result<Self> {
        let first = |values: &[f32]| values.first().copied().map_or(0.0, f64::from);
        let count = labels as f64;
        let loss = (first(loss) / count) as f32;
        let gradient_norm = norm_squared.map(|norm| (first(norm).sqrt() / count) as f32);
        if !loss.is_finite() || gradient_norm.is_some_and(|norm| !norm.is_finite()) {
            return Err(Error::NonFiniteStep {
                step,
                loss,
                gradient_norm,
            });
        }
        Ok(Self {
            step,
            loss,
            gradient_norm: gradient_norm.unwrap_or(0.0),
            learning_rate,
            labels,
        })
    }
}
