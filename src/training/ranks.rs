//! Training steps over ranks: some of the sequences of a step, and of each sequence some of the tokens.

use std::ops::Range;

use super::step::at_least_one_label;
use super::{Batch, StepReport, Trainer};
use crate::config::AttentionShape;
use crate::distributed::{RankGrid, SequenceShare};
use crate::error::Result;
use crate::longnet::Call;
use crate::ops::adamw::AdamWStep;
use crate::ops::{Labels, TokenIds, sum};
use crate::readback::Download;
use crate::recorder::Recorder;

/// A call that this rank makes.
struct Part {
    tokens: TokenIds,
    labels: Labels,
    call: Call,
    seed: u64,
}

/// What all ranks have computed for a step.
struct Sums {
    step: AdamWStep,
    /// Gradients, and after them the loss.
    values: Vec<f32>,
    labels: u64,
}

impl Trainer {
    /// Does one step over all of `batches` together with the other ranks of `grid`: rows of the grid take some of the sequences each,
    /// and the ranks of a row some of the tokens of each sequence. All ranks give the same batches, and have trainers with the same
    /// weights and options. They end with the same weights, bit for bit, and those of a step on one rank but for rounding: gradients
    /// are added in the order of ranks, clipped by their common norm, and divided by the labels of all. Blocks until the step is done.
    ///
    /// Any rank can [save](Self::save) a checkpoint, which any number of ranks can resume.
    ///
    /// # Errors
    /// As [`record_step`](Self::record_step) and [`PendingStep::wait`](super::PendingStep::wait); those of the
    /// [group](crate::distributed::Group): an error on one rank is one on all. The weights have not changed then, unless a device failed
    /// when all ranks were ready to change them: [`steps`](Self::steps) tells.
    pub fn step_on_ranks(&mut self, grid: &RankGrid, batches: &[Batch]) -> Result<StepReport> {
        let number = self.steps() + 1;
        let summed = self.sums_of_ranks(grid, batches, number)?;
        let Sums {
            step,
            values,
            labels,
        } = &summed;
        // No rank changes its weights before all can.
        let change = grid.all().agree(self.record_change(step, values))?;
        let (recorder, loss, norm_squared) = change;
        let submitted = recorder.submit();
        if submitted.is_ok() {
            self.counted_steps = number;
            self.recorded = None;
        }
        let norm_squared = submitted.and_then(|submission| {
            submission.wait()?;
            norm_squared.wait()
        });
        let norm_squared = grid.all().agree(norm_squared)?;
        // What is not finite is so on all ranks, which may go on with the next step.
        let of_step = (number, step.learning_rate, *labels);
        StepReport::new(of_step, loss, &norm_squared)
    }

    /// Does all of [`step_on_ranks`](Self::step_on_ranks) but the change of the weights: compiles kernels, and makes the buffers of the
    /// step and of what ranks exchange, so that the pool has them before the first step. Compares the weights of all ranks, which steps
    /// do not. Blocks until that is done on all ranks.
    ///
    /// # Errors
    /// As [`step_on_ranks`](Self::step_on_ranks).
    pub fn warm_up_on_ranks(&self, grid: &RankGrid, batches: &[Batch]) -> Result<()> {
        let weights = grid.all().agree(self.weights_in_words())?;
        let what = [("the CRC-32 of the weights", weights)];
        grid.all().expect_same(&what)?;
        // Twice, because in the first pass the pool lends larger buffers that it has for smaller ones, and makes those when they are
        // needed the next time.
        for _ in 0..2 {
            let summed = self.sums_of_ranks(grid, batches, self.steps() + 1)?;
            let change = self.record_change(&summed.step, &summed.values);
            let rehearsed = change.and_then(|(recorder, ..)| recorder.rehearse());
            grid.all().agree(rehearsed)?;
        }
        Ok(())
    }

    /// The gradients of all ranks.
    fn sums_of_ranks(&self, grid: &RankGrid, batches: &[Batch], number: u64) -> Result<Sums> {
        let begun = self
            .expect_no_step_under_way("Trainer::step_on_ranks")
            .and_then(|()| self.begin_on_ranks(grid, batches, number));
        // A learning rate that is none is so on all ranks, or one of them differs.
        let (mut recorder, parts, step, labels) = grid.all().agree(begun)?;
        let words = grid.all().agree(self.in_words(batches, number))?;
        grid.all().expect_same(&words)?;
        let local = self.add_parts(&mut recorder, &parts);
        // Ranks that share sequences with this one wait for it there, if it has failed in the middle.
        let local = grid.row().agree(local);
        let gathered = local.and_then(|loss| self.local_sums(recorder, loss));
        // The loss is one more number to be added.
        let mut values = grid.all().agree(gathered)?;
        grid.all().sum(Ok(&mut values))?;
        Ok(Sums {
            step,
            values,
            labels,
        })
    }

    /// What must be the same on all ranks.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`](crate::Error::InvalidConfig) for a learning rate that is none.
    fn in_words(&self, batches: &[Batch], number: u64) -> Result<Vec<(&'static str, String)>> {
        let mut digest = crc32fast::Hasher::new();
        for batch in batches {
            digest.update(bytemuck::cast_slice(batch.tokens()));
            digest.update(bytemuck::cast_slice(batch.labels()));
        }
        let shapes: Vec<&AttentionShape> = batches.iter().map(Batch::shape).collect();
        let rate = self.options.learning_rate.checked_at(number)?;
        Ok(vec![
            ("the model", format!("{:?}", self.model.config())),
            ("the optimizer", format!("{:?}", self.options.optimizer)),
            ("the learning rate", format!("{rate:e}")),
            // What is computed again is exchanged again.
            ("recompute", format!("{:?}", self.options.recompute)),
            ("the seed", self.options.seed.to_string()),
            ("the number of the step", number.to_string()),
            ("the shapes of the batches", format!("{shapes:?}")),
            (
                "the CRC-32 of tokens and labels",
                format!("{:08x}", digest.finalize()),
            ),
        ])
    }

    /// The weights' digest, in words.
    fn weights_in_words(&self) -> Result<String> {
        let mut digest = crc32fast::Hasher::new();
        for (_, tensor) in self.optimizer.weights().iter() {
            let mut recorder = self.context.recorder("weights");
            let download = recorder.download_bytes(tensor)?;
            recorder.submit()?.wait()?;
            digest.update(&download.wait()?);
        }
        Ok(format!("{:08x}", digest.finalize()))
    }

    /// The calls of this rank, with all that can be checked before ranks wait for each other.
    fn begin_on_ranks(
        &self,
        grid: &RankGrid,
        batches: &[Batch],
        number: u64,
    ) -> Result<(Recorder, Vec<Part>, AdamWStep, u64)> {
        let labels = at_least_one_label(batches)?;
        let step = AdamWStep {
            options: self.options.optimizer,
            learning_rate: self.options.learning_rate.checked_at(number)?,
            step: number,
            gradient_scale: (1.0 / labels as f64) as f32,
        };
        let mut recorder = self.context.recorder("training step");
        let all: usize = batches.iter().map(|batch| batch.shape().batch()).sum();
        let (rows, row) = (grid.num_rows(), grid.row_number());
        let own = all * row / rows..all * (row + 1) / rows;
        let mut parts = Vec::new();
        let mut before = 0;
        for (index, batch) in (0..).zip(batches) {
            // As of a step on one rank.
            let seed = self.options.seed ^ (number << 20 | index);
            let count = batch.shape().batch();
            let items = own.start.clamp(before, before + count) - before
                ..own.end.clamp(before, before + count) - before;
            before += count;
            for (call, rows) in calls(grid, batch.shape(), items)? {
                let (tokens, labels) = (&batch.tokens()[rows.clone()], &batch.labels()[rows]);
                let (tokens, labels) = self.upload_rows(&mut recorder, tokens, labels)?;
                parts.push(Part {
                    tokens,
                    labels,
                    call,
                    seed,
                });
            }
        }
        Ok((recorder, parts, step, labels))
    }

    /// Records the gradients of this rank's calls, and the download of the sum of their losses.
    fn add_parts(&self, recorder: &mut Recorder, parts: &[Part]) -> Result<Option<Download<f32>>> {
        self.optimizer.gradients().clear(recorder);
        let mut losses = Vec::new();
        for part in parts {
            let rows = (&part.tokens, &part.labels);
            losses.push(self.add_call(recorder, rows, &part.call, part.seed)?);
        }
        if losses.is_empty() {
            return Ok(None);
        }
        let loss = sum(recorder, &losses.iter().collect::<Vec<_>>())?;
        recorder.download(&loss).map(Some)
    }

    /// The gradients of this rank's calls, and after them the sum of their losses.
    fn local_sums(&self, mut recorder: Recorder, loss: Option<Download<f32>>) -> Result<Vec<f32>> {
        // Parameter by parameter: where one begins in its buffer depends on the device.
        let downloads = self.optimizer.gradients().download(&mut recorder)?;
        recorder.submit()?.wait()?;
        let mut values = Vec::new();
        for download in downloads {
            values.extend(download.wait()?);
        }
        let loss = loss.map_or(Ok(Vec::new()), |loss| loss.wait())?;
        values.push(loss.first().copied().unwrap_or(0.0));
        Ok(values)
    }

    /// Records the change of the weights by the gradients of all ranks. Returns the sum of all losses, and the download of the square of
    /// the gradients' norm.
    fn record_change<'v>(
        &self,
        step: &AdamWStep,
        values: &'v [f32],
    ) -> Result<(Recorder, &'v [f32], Download<f32>)> {
        let mut recorder = self.context.recorder("training step");
        let mut left = values;
        for (_, tensor) in self.optimizer.gradients().iter() {
            // As many as were downloaded. What is not finite is for the report to tell.
            let (own, rest) = left.split_at(tensor.num_elements() as usize);
            recorder.write_bytes(tensor, bytemuck::cast_slice(own))?;
            left = rest;
        }
        let norm_squared = self.optimizer.gradient_norm_squared(&mut recorder)?;
        self.optimizer.apply(&mut recorder, step, &norm_squared)?;
        let norm_squared = recorder.download(&norm_squared)?;
        Ok((recorder, left, norm_squared))
    }
}

/// The calls of a rank over `items` of a batch, each with its rows: all items at once or, where ranks share sequences, one after the
/// other.
fn calls(
    grid: &RankGrid,
    shape: &AttentionShape,
    items: Range<usize>,
) -> Result<Vec<(Call, Range<usize>)>> {
    let len = shape.seq_len();
    if items.is_empty() {
        return Ok(Vec::new());
    }
    if grid.row().size() == 1 {
        let lens: Vec<usize> = items.clone().map(|item| shape.valid_len(item)).collect();
        let of_items = AttentionShape::new(items.len(), len)?.with_valid_lens(&lens)?;
        let call = Call::new(of_items).with_first_row(items.start * len);
        return Ok(vec![(call, items.start * len..items.end * len)]);
    }
    let with_tokens = items.filter(|item| shape.valid_len(*item) > 0);
    let of_item = |item: usize| {
        let share = SequenceShare::new(grid.row().clone(), shape.valid_len(item));
        let own = share.range();
        let call = Call::of_share(share)?.with_first_row(item * len);
        Ok((call, item * len + own.start..item * len + own.end))
    };
    with_tokens.map(of_item).collect()
}
