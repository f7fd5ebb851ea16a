//! Evaluation: the loss on data that the model is not trained on.

use super::step::{at_least_one_label, the_element};
use super::{Batch, Trainer};
use crate::error::{Error, Result};
use crate::longnet::{Call, Input};
use crate::readback::Download;
use crate::recorder::{Progress, Recorder, SliceOptions};

/// Result of an evaluation.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Evaluation {
    /// Steps done before the evaluation.
    pub steps: u64,
    /// Mean cross-entropy over all labels, in nats. Its exponential is the perplexity.
    pub loss: f32,
    /// Labels that counted.
    pub labels: u64,
}

impl Trainer {
    /// The loss of `batches` with the current weights and without dropout. Changes nothing. Each batch is one submission, and the
    /// next is recorded while it runs, so at most two batches are in memory at a time. Blocks (not in browsers).
    ///
    /// # Errors
    /// [`Error::NonFiniteStep`] for a loss that is not finite; [`Error::OutOfOrder`] while a step is recorded and not submitted to the
    /// end; [`Error::InvalidShape`] when there is no label, [`Error::TokenOutOfRange`] for tokens and labels beyond the vocabulary;
    /// the errors of leasing, recording, submitting and downloading.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn evaluate_blocking(&self, batches: &[Batch]) -> Result<Evaluation> {
        let labels = self.expect_evaluable(batches)?;
        let mut nats = 0.0;
        let mut before: Option<Download<f32>> = None;
        for batch in batches {
            let (recorder, loss) = self.record_loss(batch)?;
            recorder.submit()?;
            if let Some(before) = before.replace(loss) {
                nats += the_element(&before.wait()?);
            }
        }
        if let Some(last) = before {
            nats += the_element(&last.wait()?);
        }
        self.evaluation(nats, labels)
    }

    /// As [`evaluate_blocking`](Self::evaluate_blocking), in slices of the device's time, batch after batch. `progress` is
    /// called after each slice with the number of tokens done. Nothing blocks, any executor will do, and dropping the future
    /// cancels the evaluation.
    ///
    /// # Errors
    /// As [`evaluate_blocking`](Self::evaluate_blocking).
    pub async fn evaluate_in_slices(
        &self,
        batches: &[Batch],
        slices: SliceOptions,
        mut progress: impl FnMut(Progress),
    ) -> Result<Evaluation> {
        let labels = self.expect_evaluable(batches)?;
        let tokens = |batches: &[Batch]| -> u64 {
            let of_each = batches.iter().map(|batch| batch.tokens().len() as u64);
            of_each.sum()
        };
        let total = tokens(batches);
        let mut nats = 0.0;
        for (index, batch) in batches.iter().enumerate() {
            let (before, own) = (tokens(&batches[..index]), batch.tokens().len() as f64);
            let (recorder, loss) = self.record_loss(batch)?;
            let mut sliced = recorder.submit_in_slices(slices);
            let in_all = |within: Progress| Progress {
                done: before + (within.fraction() * own) as u64,
                total,
            };
            sliced.run(|within| progress(in_all(within))).await?;
            nats += the_element(&loss.await?);
        }
        self.evaluation(nats, labels)
    }

    fn expect_evaluable(&self, batches: &[Batch]) -> Result<u64> {
        self.expect_no_step_under_way("evaluation")?;
        at_least_one_label(batches)
    }

    /// Records the sum of a batch's losses.
    fn record_loss(&self, batch: &Batch) -> Result<(Recorder, Download<f32>)> {
        let mut recorder = self.context.recorder("evaluation");
        let weights = self.weights();
        let (tokens, labels) = self.upload(&mut recorder, batch)?;
        let call = Call::new(batch.shape().clone());
        let input = Input::Tokens(&tokens);
        let output = self
            .model
            .forward(&mut recorder, weights, input, &call, false)?;
        let loss = self
            .model
            .loss(&mut recorder, weights, &output.features, &labels, None)?;
        let total = recorder.download(&loss.total)?;
        Ok((recorder, total))
    }

    fn evaluation(&self, nats: f64, labels: u64) -> Result<Evaluation> {
        let (steps, loss) = (self.steps(), (nats / labels as f64) as f32);
        match loss.is_finite() {
            true => Ok(Evaluation {
                steps,
                loss,
                labels,
            }),
            false => Err(Error::NonFiniteStep {
                step: steps,
                loss,
                gradient_norm: None,
            }),
        }
    }
}
