//! One training step: its recording and its result.

use std::sync::Arc;
use std::time::Duration;

use super::trainer::vocab_size;
use super::{Batch, Trainer};
use crate::contents::Contents;
use crate::error::{Error, Result};
use crate::longnet::{Call, Input};
use crate::ops::adamw::AdamWStep;
use crate::ops::{Labels, TokenIds, sum};
use crate::readback::Download;
use crate::recorder::{Progress, Recorder, SliceOptions};
use crate::tensor::Tensor;

/// A recorded step, still to be submitted; made by [`Trainer::record_step`].
///
/// From a task of any executor, [`in_slices`](Self::in_slices) does all of it. From a loop of frames:
///
/// ```no_run
/// # use dilated_attention::training::{Batch, StepReport, Trainer, TrainingStep};
/// # use dilated_attention::{Result, SliceOptions};
/// # fn frames(trainer: &mut Trainer, batches: &[Batch], is_cancelled: impl Fn() -> bool) -> Result<Option<StepReport>> {
/// let TrainingStep { recorder, pending, .. } = trainer.record_step(batches)?;
/// let mut sliced = recorder.submit_in_slices(SliceOptions::default());
/// while !pending.is_ready() {
///     if is_cancelled() {
///         return Ok(None); // the step has not happened, unless all of it was submitted
///     }
///     let progress = sliced.advance()?;
///     println!("{:.0} %", 100.0 * progress.fraction());
///     // ... draw the frame ...
/// }
/// pending.wait().map(Some)
/// # }
/// ```
///
/// In slices, the change of the weights and the download of the loss are the last slice, however long that takes: it passes over
/// weights, gradients and means once. So a step that is cancelled, or whose submission fails, has changed nothing, or was
/// submitted to the end; [`Trainer::steps`] tells which.
#[derive(Debug)]
#[must_use = "a step has no effect until it is submitted"]
#[non_exhaustive]
pub struct TrainingStep {
    /// The recording, to be submitted at once, in slices, or into an encoder of the application.
    pub recorder: Recorder,
    /// The step's report, available when the device is done.
    pub pending: PendingStep,
}

impl TrainingStep {
    /// How long the device will take, if all its kernels were measured before; see
    /// [`Context::expected_time`](crate::Context::expected_time).
    pub fn expected_time(&self) -> Option<Duration> {
        self.recorder.context().expected_time(&self.recorder)
    }

    /// Submits all of it at once.
    ///
    /// # Errors
    /// As [`Recorder::submit`]. The step has not happened then.
    pub fn submit(self) -> Result<PendingStep> {
        self.recorder.submit()?;
        Ok(self.pending)
    }

    /// Submits it in slices of the device's time so that others who use the device are not kept waiting; `progress` is called
    /// after each slice. Nothing blocks, any executor will do, and dropping the future cancels the step.
    ///
    /// # Errors
    /// As [`SlicedSubmission::advance`](crate::SlicedSubmission::advance), and then the step has not happened; as
    /// [`PendingStep::wait`].
    pub async fn in_slices(
        self,
        slices: SliceOptions,
        progress: impl FnMut(Progress),
    ) -> Result<StepReport> {
        let Self { recorder, pending } = self;
        recorder.submit_in_slices(slices).run(progress).await?;
        pending.report().await
    }
}

impl Trainer {
    /// Records the step after the last one done, and what is held once it is submitted to the end.
    pub(super) fn record(
        &self,
        mut recorder: Recorder,
        batches: &[Batch],
    ) -> Result<(TrainingStep, Arc<Contents>)> {
        let number = self.steps() + 1;
        let num_labels = at_least_one_label(batches)?;
        let step = AdamWStep {
            options: self.options.optimizer,
            learning_rate: self.options.learning_rate.checked_at(number)?,
            step: number,
            gradient_scale: (1.0 / num_labels as f64) as f32,
        };
        self.optimizer.gradients().clear(&mut recorder);
        let mut losses = Vec::new();
        for (index, batch) in (0..).zip(batches) {
            // Steps and their batches draw from streams of their own.
            let seed = self.options.seed ^ (number << 20 | index);
            losses.push(self.add_gradients(&mut recorder, batch, seed)?);
        }
        let loss = sum(&mut recorder, &losses.iter().collect::<Vec<_>>())?;
        let norm_squared = self.optimizer.gradient_norm_squared(&mut recorder)?;
        let (pending, done) = recorder.in_one_slice(|recorder| {
            self.optimizer.apply(recorder, &step, &norm_squared)?;
            let pending = PendingStep {
                step: number,
                learning_rate: step.learning_rate,
                labels: num_labels,
                loss: recorder.download(&loss)?,
                norm_squared: recorder.download(&norm_squared)?,
            };
            let done = Contents::new("training step");
            recorder.wrote(&done, true);
            Ok((pending, done))
        })?;
        Ok((TrainingStep { recorder, pending }, done))
    }

    /// Records the gradients of the sum of a batch's losses, added to those that there are, and returns that sum.
    fn add_gradients(&self, recorder: &mut Recorder, batch: &Batch, seed: u64) -> Result<Tensor> {
        let (tokens, labels) = self.upload(recorder, batch)?;
        let call = Call::new(batch.shape().clone());
        self.add_call(recorder, (&tokens, &labels), &call, seed)
    }

    /// Records the gradients of the sum of a call's losses, added to those that there are, and returns that sum.
    pub(super) fn add_call(
        &self,
        recorder: &mut Recorder,
        (tokens, labels): (&TokenIds, &Labels),
        call: &Call,
        seed: u64,
    ) -> Result<Tensor> {
        let (weights, gradients) = (self.optimizer.weights(), self.optimizer.gradients());
        let (features, saved) = self.model.forward_saving(
            recorder,
            weights,
            Input::Tokens(tokens),
            call,
            Some(seed),
            self.options.recompute,
        )?;
        // Gradients of sums over labels: the optimiser divides by the number of all labels.
        let sums = Some((gradients, 1.0));
        let loss = self
            .model
            .loss(recorder, weights, &features, labels, sums)?;
        drop(features);
        if let Some(dfeatures) = loss.dfeatures {
            let sets = [weights, gradients];
            self.model
                .backward(recorder, sets, saved, &dfeatures, None)?;
        }
        Ok(loss.total)
    }

    pub(super) fn upload(
        &self,
        recorder: &mut Recorder,
        batch: &Batch,
    ) -> Result<(TokenIds, Labels)> {
        self.upload_rows(recorder, batch.tokens(), batch.labels())
    }

    /// Records tokens and labels of some rows.
    pub(super) fn upload_rows(
        &self,
        recorder: &mut Recorder,
        tokens: &[u32],
        labels: &[u32],
    ) -> Result<(TokenIds, Labels)> {
        let vocab = vocab_size(&self.model)?;
        Ok((
            TokenIds::upload(recorder, tokens, vocab)?,
            Labels::upload(recorder, labels, vocab)?,
        ))
    }
}

/// Labels of all batches that count.
///
/// # Errors
/// [`Error::InvalidShape`] when there is none.
pub(super) fn at_least_one_label(batches: &[Batch]) -> Result<u64> {
    if batches.is_empty() {
        return Err(Error::InvalidShape {
            what: "number of batches".into(),
            given: "0".to_owned(),
            need: "at least 1".to_owned(),
        });
    }
    match batches.iter().map(Batch::num_labels).sum() {
        0 => Err(Error::InvalidShape {
            what: "labels".into(),
            given: "none, or only ignored ones".to_owned(),
            need: "one label or more that is not IGNORED_LABEL".to_owned(),
        }),
        counted => Ok(counted),
    }
}

/// The coming report of a step that was submitted, or will be.
#[derive(Debug)]
#[must_use = "only waiting tells what came of it"]
pub struct PendingStep {
    step: u64,
    learning_rate: f32,
    labels: u64,
    /// Sum over the labels.
    loss: Download<f32>,
    norm_squared: Download<f32>,
}

/// Report of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// Its number, from 1.
    pub step: u64,
    /// Mean cross-entropy over all labels, in nats, before the step.
    pub loss: f32,
    /// Norm of the gradient of that mean, before it is clipped.
    pub gradient_norm: f32,
    /// The learning rate.
    pub learning_rate: f32,
    /// Labels that counted.
    pub labels: u64,
}

impl PendingStep {
    /// The number of the step, from 1.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Whether [`wait`](Self::wait) would return at once. Never blocks; see [`Download::is_ready`].
    pub fn is_ready(&self) -> bool {
        self.loss.is_ready() && self.norm_squared.is_ready()
    }

    /// Blocks until the step is done (not in browsers). It may be called again.
    ///
    /// # Errors
    /// [`Error::NonFiniteStep`] for a loss or gradient that is not finite, which says what became of the weights: training may
    /// continue with the next step. As [`Download::wait`]: [`Error::DownloadAbandoned`] for a step that was dropped or cancelled,
    /// [`Error::NotSubmitted`] for one that is not submitted to the end.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn wait(&self) -> Result<StepReport> {
        let loss = self.loss.wait()?;
        let norm_squared = self.norm_squared.wait()?;
        StepReport::new(
            (self.step, self.learning_rate, self.labels),
            &loss,
            &norm_squared,
        )
    }

    /// Waits for the end of the step, on any executor.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub async fn report(self) -> Result<StepReport> {
        let loss = self.loss.await?;
        let norm_squared = self.norm_squared.await?;
        StepReport::new(
            (self.step, self.learning_rate, self.labels),
            &loss,
            &norm_squared,
        )
    }
}

impl StepReport {
    /// From sums over labels, one element each.
    pub(super) fn new(
        (step, learning_rate, labels): (u64, f32, u64),
        loss: &[f32],
        norm_squared: &[f32],
    ) -> Result<Self> {
        let count = labels as f64;
        let loss = (the_element(loss) / count) as f32;
        let gradient_norm = (the_element(norm_squared).sqrt() / count) as f32;
        match loss.is_finite() && gradient_norm.is_finite() {
            true => Ok(Self {
                step,
                loss,
                gradient_norm,
                learning_rate,
                labels,
            }),
            false => Err(Error::NonFiniteStep {
                step,
                loss,
                gradient_norm: Some(gradient_norm),
            }),
        }
    }
}

/// The element of a tensor that has one.
pub(super) fn the_element(values: &[f32]) -> f64 {
    values.first().copied().map_or(0.0, f64::from)
}
