//! Files of whole training runs (`ts_train_*`): losses and norms of every step, weights after the last.

use std::num::NonZeroUsize;
use std::sync::Arc;

use dilated_attention::distributed::RankGrid;
use dilated_attention::longnet::LongNet;
use dilated_attention::training::{
    AdamWOptions, Batch, LearningRate, StepReport, Trainer, TrainingOptions,
};
use dilated_attention::{AttentionShape, Context, Mask};

use super::attention::Engine;
use super::golden_file::GoldenFile;
use super::longnet;
use super::modules::{self, compare, compare_parameters, same, told, weights};
use super::ranks::{Results, Sums};
use super::report::Report;

/// Trains from the file's weights on the file's tokens. Ranks all have some tokens of every sequence.
pub fn check(
    file: &GoldenFile,
    engine: &mut dyn Engine,
    report: &mut Report,
) -> Result<(), String> {
    let Some(context) = engine.context() else {
        return Ok(());
    };
    let trained = match engine.ranks() {
        None => train(file, context, None)?,
        Some(ranks) => {
            let trained = ranks.run(|group, context| {
                let grid = NonZeroUsize::new(group.size()).unwrap_or(NonZeroUsize::MIN);
                let grid = RankGrid::new(Arc::clone(group), grid).map_err(told)?;
                train(file, context, Some(&grid))
            })?;
            let mut trained = trained.into_iter();
            let first = trained.next().ok_or("there are no ranks")?;
            match trained.all(|trained| trained.values() == first.values()) {
                true => first,
                false => return Err("ranks end with different weights".to_owned()),
            }
        }
    };
    let of_each =
        |value: fn(&StepReport) -> f32| trained.reports.iter().map(value).collect::<Vec<_>>();
    let steps = [trained.reports.len()];
    report.ran(trained.results.kernels.clone());
    compare(file, "losses", &steps, &of_each(|step| step.loss), report);
    let norms = of_each(|step| step.gradient_norm);
    compare(file, "grad_norms", &steps, &norms, report);
    if let Some(Sums { list, values }) = &trained.results.sums {
        compare_parameters(file, "final.", list, values, &same, report);
    }
    Ok(())
}

/// Reports of all steps, and the weights after the last.
struct Trained {
    reports: Vec<StepReport>,
    results: Results,
}

impl Trained {
    fn values(&self) -> Option<&[Vec<f32>]> {
        self.results
            .sums
            .as_ref()
            .map(|sums| sums.values.as_slice())
    }
}

fn train(file: &GoldenFile, context: &Context, grid: Option<&RankGrid>) -> Result<Trained, String> {
    // A decoder, whether or not the configuration says so.
    let attention = modules::attention(file, false)?.with_mask(Mask::Causal);
    let model = LongNet::new(context, longnet::config(file, attention)?).map_err(told)?;
    let mut recorder = context.recorder("weights");
    let weights = weights(file, &mut recorder, model.parameters(), &same)?;
    recorder.submit().map_err(told)?;
    let mut trainer =
        Trainer::from_weights(context, model, weights, options(file)?).map_err(told)?;
    let reports = batches(file)?
        .iter()
        .map(|batches| match grid {
            None => trainer.step(batches)?.wait(),
            Some(grid) => trainer.step_on_ranks(grid, batches),
        })
        .collect::<Result<Vec<StepReport>, _>>()
        .map_err(told)?;
    let recorder = context.recorder("final weights");
    let results = Results::read(recorder, &[], Some(trainer.weights())).map_err(told)?;
    Ok(Trained { reports, results })
}

fn options(file: &GoldenFile) -> Result<TrainingOptions, String> {
    let number = |name: &str| {
        let value = file.config[name].as_f64();
        value.ok_or_else(|| format!("config: {name} is no number"))
    };
    let beta = |index: usize| {
        let value = file.config["betas"][index].as_f64();
        value.ok_or("config: betas are no two numbers")
    };
    let warm_up = modules::number(file, "warm_up")? as u64;
    let peak = number("lr")? as f32;
    // It stays at the peak after its rise.
    let learning_rate = LearningRate::Linear {
        peak,
        end: peak,
        warm_up,
        total: warm_up,
    };
    let mut options = TrainingOptions::new(learning_rate);
    options.optimizer = AdamWOptions {
        beta_1: beta(0)? as f32,
        beta_2: beta(1)? as f32,
        eps: number("eps")? as f32,
        weight_decay: number("weight_decay")? as f32,
        // Not clipped where the file does not say.
        max_norm: number("max_norm")
            .ok()
            .map(|norm| norm as f32)
            .filter(|norm| *norm > 0.0),
    };
    Ok(options)
}

/// The batches of each step.
fn batches(file: &GoldenFile) -> Result<Vec<Vec<Batch>>, String> {
    let shape @ [steps, parts, items, tokens] = file.shape::<4>("tokens")?;
    let ids: Option<Vec<u32>> = file
        .i32s("tokens", &shape)?
        .into_iter()
        .map(|id| u32::try_from(id).ok())
        .collect();
    let ids = ids.ok_or("a token is negative")?;
    if items == 0 || tokens == 0 {
        return Err(format!("tokens of shape {shape:?} are none"));
    }
    let shape = AttentionShape::new(items, tokens - 1).map_err(told)?;
    let gather = |ids: &[u32], first: usize| -> Vec<u32> {
        let sequences = ids.chunks(tokens);
        sequences
            .flat_map(|ids| &ids[first..first + tokens - 1])
            .copied()
            .collect()
    };
    let batch = |ids: &[u32]| Batch::new(shape.clone(), gather(ids, 0), gather(ids, 1));
    let batches: Result<Vec<Batch>, _> = ids.chunks(items * tokens).map(batch).collect();
    let batches = batches.map_err(told)?;
    let steps = (0..steps).map(|step| batches[step * parts..][..parts].to_vec());
    Ok(steps.collect())
}
