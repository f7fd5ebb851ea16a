//! The trainer of language models.

use std::sync::Arc;

use super::{AdamWOptions, Batch, LearningRate, Optimizer, PendingStep, TrainingStep};
use crate::contents::Contents;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::longnet::{LongNet, OutputProjection, Recompute};
use crate::nn::Parameters;

/// Options of a training.
#[derive(Clone, Debug)]
pub struct TrainingOptions {
    /// Settings of AdamW, among them the norm that gradients are clipped to.
    pub optimizer: AdamWOptions,
    /// The rate of each step.
    pub learning_rate: LearningRate,
    /// What the backward recomputes.
    pub recompute: Recompute,
    /// Seed of the dropout masks and of fresh weights.
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

/// A language model in training: its weights, the state of the optimizer and the options. The model must be causal: no token sees
/// those after it. Models of other kinds (masked ones, classifiers) train with the parts that the [module](super) names.
///
/// ```no_run
/// use dilated_attention::longnet::{LongNet, LongNetConfig, OutputProjection};
/// use dilated_attention::training::{Batch, LearningRate, Trainer, TrainingOptions};
/// use dilated_attention::{Context, DilatedAttentionConfig};
/// let context = Context::new_blocking()?;
/// let attention = DilatedAttentionConfig::new(4, 32, &[128, 512], &[1, 4])?;
/// let config = LongNetConfig::decoder(attention, 2, 512).with_vocabulary(256, OutputProjection::Own);
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
    /// Steps done, but for the one that was recorded last.
    pub(super) counted_steps: u64,
    /// What the recording of the step after those writes with its update: they are held once it is submitted.
    pub(super) recorded: Option<Arc<Contents>>,
}

impl Trainer {
    /// A model with fresh weights.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] for a model without tokens, output projection or causal mask, and for options out
    /// of range; those of leasing and uploading.
    pub fn new(context: &Context, model: LongNet, options: TrainingOptions) -> Result<Self> {
        options.check(&model)?;
        let weights = model.initial_weights(context, options.seed)?;
        Self::from_weights(context, model, weights, options)
    }

    /// A model with given weights, which the steps change.
    ///
    /// # Errors
    /// [`Error::ParameterMismatch`] for weights of another model, and as [`new`](Self::new).
    pub fn from_weights(
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
            counted_steps: steps,
            recorded: None,
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

    /// Steps done: those whose recordings were submitted to the end.
    pub fn steps(&self) -> u64 {
        let is_done = |step: &Arc<Contents>| step.are_held();
        self.counted_steps + u64::from(self.recorded.as_ref().is_some_and(is_done))
    }

    /// The options.
    pub fn options(&self) -> &TrainingOptions {
        &self.options
    }

    /// Replaces the options, from the next recorded step on. A new seed changes the dropout masks only.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] for options out of range; the options stay as they were.
    pub fn set_options(&mut self, options: TrainingOptions) -> Result<()> {
        options.check(&self.model)?;
        self.options = options;
        Ok(())
    }

    /// Changes the learning rate. Schedules count steps from the start of the training, not from this call.
    ///
    /// # Errors
    /// As [`set_options`](Self::set_options).
    pub fn set_learning_rate(&mut self, learning_rate: LearningRate) -> Result<()> {
        self.set_options(TrainingOptions {
            learning_rate,
            ..self.options.clone()
        })
    }

    /// Changes the settings of AdamW: weight decay, clipping, the decay of its means. The means themselves stay.
    ///
    /// # Errors
    /// As [`set_options`](Self::set_options).
    pub fn set_optimizer(&mut self, optimizer: AdamWOptions) -> Result<()> {
        self.set_options(TrainingOptions {
            optimizer,
            ..self.options.clone()
        })
    }

    /// Changes what the backward recomputes. That changes the memory and time of a step, but no bit of its result.
    pub fn set_recompute(&mut self, recompute: Recompute) {
        self.options.recompute = recompute;
    }

    /// Records one step over all of `batches`, to be submitted at once, in slices or into an application's encoder. It is done,
    /// and [`steps`](Self::steps) counts it, when the last of its commands is submitted; until then weights, means and the number
    /// of steps are those of before. Dropped, refused or cancelled, it has not happened.
    ///
    /// # Errors
    /// [`Error::OutOfOrder`] while the step before is recorded and not submitted to the end (into an encoder: while that has not
    /// run). [`Error::TokenOutOfRange`] names a token or label beyond the vocabulary; [`Error::InvalidShape`] when there is no batch
    /// or no label; [`Error::InvalidConfig`] when the function of the learning rate returns a negative or non-finite rate; the errors of planning,
    /// leasing and recording. Nothing has changed then.
    pub fn record_step(&mut self, batches: &[Batch]) -> Result<TrainingStep> {
        self.expect_no_step_under_way("Trainer::record_step")?;
        self.counted_steps = self.steps();
        self.recorded = None;
        let recorder = self.context.recorder("training step");
        let (step, done) = self.record(recorder, batches)?;
        self.recorded = Some(done);
        Ok(step)
    }

    /// Records one step over all of `batches` and submits it at once. You need not wait for its loss before the next step.
    ///
    /// # Errors
    /// As [`record_step`](Self::record_step) and [`Recorder::submit`](crate::Recorder::submit). Nothing has changed then.
    pub fn step(&mut self, batches: &[Batch]) -> Result<PendingStep> {
        self.record_step(batches)?.submit()
    }

    /// Whether weights and number of steps belong together until the trainer is changed.
    pub(super) fn expect_no_step_under_way(&self, call: &'static str) -> Result<()> {
        match &self.recorded {
            Some(step) if step.are_pending() => Err(Error::OutOfOrder {
                call,
                state: format!(
                    "step {} is recorded, but not submitted to the end",
                    self.counted_steps + 1
                ),
                next_step: "submit all of it, or drop it, before",
            }),
            _ => Ok(()),
        }
    }
}

pub(super) fn vocab_size(model: &LongNet) -> Result<usize> {
    let need = "a model with vocab_size and an output projection";
    let missing = |given: &str| Error::InvalidConfig {
        what: "model to be trained",
        given: given.to_owned(),
        need,
    };
    if model.config().output_projection == OutputProjection::None {
        return Err(missing("one without output projection"));
    }
    model
        .config()
        .vocab_size
        .ok_or_else(|| missing("one without vocab_size"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::DilatedAttentionConfig;
    use crate::config::AttentionShape;
    use crate::device::DeviceCaps;
    use crate::longnet::LongNetConfig;

    fn config() -> LongNetConfig {
        let attention = DilatedAttentionConfig::new(1, 4, &[8], &[1]).expect("valid");
        let mut config = LongNetConfig::decoder(attention, 1, 8);
        config.vocab_size = Some(5);
        config.output_projection = OutputProjection::Own;
        config
    }

    fn trainer(learning_rate: LearningRate) -> Trainer {
        let dry_run = Context::dry_run(DeviceCaps::webgpu_defaults());
        let model = LongNet::new(&dry_run, config()).expect("valid");
        Trainer::new(&dry_run, model, TrainingOptions::new(learning_rate)).expect("leases")
    }

    fn batch() -> [Batch; 1] {
        [Batch::next_tokens(&[&[0, 1, 2, 3]]).expect("a batch")]
    }

    #[test]
    fn one_step_is_recorded_at_a_time_and_counts_when_it_is_submitted() {
        let mut trainer = trainer(LearningRate::Constant(0.1));
        let leases = |trainer: &Trainer| trainer.context.pool().stats().leases.current;
        let before = leases(&trainer);
        for _ in 0..2 {
            let step = trainer.record_step(&batch()).expect("records");
            assert_eq!((step.pending.step(), trainer.steps()), (1, 0));
            let error = trainer
                .record_step(&batch())
                .map(drop)
                .expect_err("too early");
            assert_eq!(
                error.to_string(),
                "Trainer::record_step is out of order: step 1 is recorded, but not submitted to the end; submit all of it, or drop \
                 it, before"
            );
            drop(step);
            assert_eq!((trainer.steps(), leases(&trainer)), (0, before));
        }
        let step = trainer.record_step(&batch()).expect("records");
        drop(step.submit().expect("submits"));
        assert_eq!(trainer.steps(), 1);
        drop(trainer.step(&batch()).expect("submits"));
        let step = trainer.record_step(&batch()).expect("records");
        assert_eq!((step.pending.step(), trainer.steps()), (3, 2));
        // What fails while it is recorded leaves none under way.
        drop(step);
        let error = trainer.record_step(&[]).map(drop).expect_err("no batch");
        assert_eq!(
            error.to_string(),
            "number of batches is 0; it must be at least 1"
        );
        drop(trainer.step(&batch()).expect("submits"));
        assert_eq!(trainer.steps(), 3);
    }

    #[test]
    fn a_function_is_asked_once_a_step_and_what_is_no_rate_is_an_error_of_the_step() {
        let calls = Arc::new(AtomicU64::new(0));
        let counted = calls.clone();
        let rate = move |step| {
            counted.fetch_add(1, Ordering::Relaxed);
            match step {
                2 => f32::NAN,
                step => 1.0 / step as f32,
            }
        };
        let mut trainer = trainer(LearningRate::from_fn(rate));
        let shapes = [AttentionShape::new(1, 3).expect("valid")];
        let caps = DeviceCaps::webgpu_defaults();
        Trainer::plan(&config(), &shapes, trainer.options(), caps).expect("plans");
        trainer
            .warm_up(&shapes)
            .expect("a dry run compiles nothing");
        assert_eq!(calls.load(Ordering::Relaxed), 0);
        drop(trainer.step(&batch()).expect("submits"));
        assert_eq!(calls.load(Ordering::Relaxed), 1);
        let error = trainer.step(&batch()).map(drop).expect_err("no rate");
        assert_eq!(
            error.to_string(),
            "learning rate is NaN at step 2; it must be at least 0 and finite"
        );
        assert_eq!(trainer.steps(), 1);
        let constant = LearningRate::Constant(0.5);
        trainer
            .set_learning_rate(constant)
            .expect("means something");
        drop(trainer.step(&batch()).expect("submits"));
        assert_eq!(trainer.steps(), 2);
    }

    #[test]
    fn options_that_mean_nothing_change_nothing() {
        let mut trainer = trainer(LearningRate::Constant(0.25));
        let wrong = AdamWOptions {
            max_norm: Some(0.0),
            ..AdamWOptions::default()
        };
        let refused = [
            trainer.set_optimizer(wrong),
            trainer.set_learning_rate(LearningRate::Constant(-1.0)),
            trainer.set_options(TrainingOptions {
                optimizer: wrong,
                recompute: Recompute::Layers,
                seed: 7,
                learning_rate: LearningRate::Constant(0.5),
            }),
        ];
        for refused in refused {
            let error = refused.expect_err("means nothing");
            assert!(matches!(error, Error::InvalidConfig { .. }), "{error}");
        }
        let options = trainer.options();
        assert_eq!(options.optimizer, AdamWOptions::default());
        assert_eq!((options.recompute, options.seed), (Recompute::Insides, 0));
        assert_eq!(options.learning_rate.at(1), 0.25);
        trainer.set_recompute(Recompute::Layers);
        assert_eq!(trainer.options().recompute, Recompute::Layers);
    }
}
