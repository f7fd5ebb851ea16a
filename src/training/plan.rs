//! What a training step will need.

use std::fmt;

use super::{Batch, Optimizer, Trainer, TrainingOptions};
use crate::config::AttentionShape;
use crate::context::{Context, WarmUp};
use crate::device::DeviceCaps;
use crate::error::Result;
use crate::longnet::{LongNet, LongNetConfig, Recompute};
use crate::nn::Parameters;
use crate::tensor::zeros;

/// What a training step will need, known before it runs; made by [`Trainer::plan`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct TrainingPlan {
    /// Elements of all parameters.
    pub num_parameters: usize,
    /// What the backward computes again.
    pub recompute: Recompute,
    /// Bytes of weights, gradients and the optimiser's means, which stay between steps.
    pub kept_bytes: u64,
    /// Most bytes that are asked for at one moment, `kept_bytes` included: the peak of
    /// [`requested_bytes`](crate::PoolStats::requested_bytes) of the pool.
    pub requested_bytes: u64,
    /// Most bytes of the pool's buffers, each at its size class, from the drawing of the weights on: what a budget must allow, as
    /// far as the pool lends nothing else.
    pub held_bytes: u64,
    /// By how much [`Recompute::Layers`] lowers `requested_bytes` (or has lowered it).
    pub saved_by_recomputing_bytes: u64,
    /// Dispatches of the step.
    pub num_dispatches: usize,
}

impl Trainer {
    /// Plans a step of a model of `config` over batches of `shapes`, on a device with `caps`: the step is recorded on a
    /// [dry run](Context::dry_run), without a device.
    ///
    /// ```
    /// use dilated_attention::longnet::{LongNetConfig, OutputProjection, Recompute};
    /// use dilated_attention::training::{LearningRate, Trainer, TrainingOptions};
    /// use dilated_attention::{AttentionShape, DeviceCaps, DilatedAttentionConfig};
    /// let attention = DilatedAttentionConfig::new(8, 32, &[1024, 8192], &[1, 8])?;
    /// let mut config = LongNetConfig::decoder(attention, 12, 1024);
    /// config.vocab_size = Some(256);
    /// config.output_projection = OutputProjection::Own;
    /// let mut options = TrainingOptions::new(LearningRate::Constant(1e-3));
    /// options.recompute = Recompute::Layers;
    /// let shapes = [AttentionShape::new(1, 16_384)?];
    /// let plan = Trainer::plan(&config, &shapes, &options, DeviceCaps::webgpu_defaults())?;
    /// assert!(plan.saved_by_recomputing_bytes > 800 << 20);
    /// println!("{plan}");
    /// # Ok::<(), dilated_attention::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`LongNet::new`], [`Batch::new`] and [`step`](Self::step); [`Error::InvalidShape`](crate::Error::InvalidShape) for
    /// batches that this machine could not hold.
    pub fn plan(
        config: &LongNetConfig,
        shapes: &[AttentionShape],
        options: &TrainingOptions,
        caps: DeviceCaps,
    ) -> Result<TrainingPlan> {
        let with = |recompute| {
            let options = TrainingOptions {
                recompute,
                ..options.clone()
            };
            measure(config, shapes, options, caps.clone())
        };
        let (insides, layers) = (with(Recompute::Insides)?, with(Recompute::Layers)?);
        let saved = insides
            .requested_bytes
            .saturating_sub(layers.requested_bytes);
        let chosen = match options.recompute {
            Recompute::Insides => insides,
            Recompute::Layers => layers,
        };
        Ok(TrainingPlan {
            saved_by_recomputing_bytes: saved,
            ..chosen
        })
    }
}

impl Trainer {
    /// Compiles the kernels of a step over batches of `shapes` now; see [`Context::warm_up`].
    ///
    /// # Errors
    /// As [`step`](Self::step) and [`Context::warm_up`].
    pub fn warm_up(&self, shapes: &[AttentionShape]) -> Result<WarmUp> {
        self.context.warm_up(|dry_run| {
            let trainer = planned(dry_run, self.model.config(), self.options.clone())?;
            let mut recorder = dry_run.recorder("training step");
            drop(trainer.record(&mut recorder, &batches(shapes)?)?);
            Ok(recorder)
        })
    }
}

/// A trainer on a dry run.
fn planned(dry_run: &Context, config: &LongNetConfig, options: TrainingOptions) -> Result<Trainer> {
    let model = LongNet::new(dry_run, config.clone())?;
    // As they are drawn, but for the numbers.
    let list = model.parameters();
    let weights = Parameters::submitted(dry_run, "initial weights", list, |_, _, _| Ok(()))?;
    let mut recorder = dry_run.recorder("optimizer");
    let optimizer = Optimizer::new(&mut recorder, weights)?;
    recorder.submit()?;
    Trainer::assemble(dry_run, model, options, optimizer, 0)
}

/// Batches of such shapes, whatever is in them.
fn batches(shapes: &[AttentionShape]) -> Result<Vec<Batch>> {
    let batch = |shape: &AttentionShape| {
        let (batch, len) = (shape.batch(), shape.seq_len());
        let count = batch.checked_mul(len);
        let zeros = || zeros("batch", format!("{batch} x {len} tokens"), count);
        Batch::new(shape.clone(), zeros()?, zeros()?)
    };
    shapes.iter().map(batch).collect()
}

/// Records a step and reads the pool.
fn measure(
    config: &LongNetConfig,
    shapes: &[AttentionShape],
    options: TrainingOptions,
    caps: DeviceCaps,
) -> Result<TrainingPlan> {
    let dry_run = Context::dry_run(caps);
    let recompute = options.recompute;
    let trainer = planned(&dry_run, config, options)?;
    let setting_up_bytes = dry_run.pool().stats().held_bytes.peak;
    dry_run.pool().reset_peaks();
    let num_parameters = trainer.model.parameters().num_elements();
    let batches = batches(shapes)?;
    let kept_bytes = dry_run.pool().stats().requested_bytes.current;
    let mut recorder = dry_run.recorder("training step");
    let pending = trainer.record(&mut recorder, &batches)?;
    let num_dispatches = recorder.num_dispatches();
    recorder.submit()?;
    drop(pending);
    let stats = dry_run.pool().stats();
    Ok(TrainingPlan {
        num_parameters,
        recompute,
        kept_bytes,
        requested_bytes: stats.requested_bytes.peak,
        held_bytes: stats.held_bytes.peak.max(setting_up_bytes),
        saved_by_recomputing_bytes: 0,
        num_dispatches,
    })
}

impl fmt::Display for TrainingPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        writeln!(
            f,
            "parameters   {} ({:.1} MiB with gradients and means)",
            self.num_parameters,
            mib(self.kept_bytes)
        )?;
        writeln!(
            f,
            "step         {:.1} MiB asked for at most, in buffers of {:.1} MiB; {} dispatches",
            mib(self.requested_bytes),
            mib(self.held_bytes),
            self.num_dispatches
        )?;
        let saved = mib(self.saved_by_recomputing_bytes);
        match self.recompute {
            Recompute::Insides => write!(
                f,
                "recomputing  norms and networks; whole layers would save {saved:.1} MiB"
            ),
            Recompute::Layers => write!(f, "recomputing  whole layers, which saves {saved:.1} MiB"),
        }
    }
}
