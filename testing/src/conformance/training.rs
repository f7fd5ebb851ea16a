//! Files of whole training runs (`ts_train_*`): losses and norms of every step, weights after the last.

use dilated_attention::longnet::LongNet;
use dilated_attention::training::{
    AdamWOptions, Batch, LearningRate, StepReport, Trainer, TrainingOptions,
};
use dilated_attention::{AttentionShape, Mask};

use super::attention::Engine;
use super::golden_file::GoldenFile;
use super::longnet;
use super::modules::{self, compare, compare_parameters, read, same, told, weights};
use super::report::Report;

/// Trains from the file's weights on the file's tokens.
pub fn check(
    file: &GoldenFile,
    engine: &mut dyn Engine,
    report: &mut Report,
) -> Result<(), String> {
    let Some(context) = engine.context().cloned() else {
        return Ok(());
    };
    // A decoder, whether or not the configuration says so.
    let attention = modules::attention(file, false)?.with_mask(Mask::Causal);
    let model = LongNet::new(&context, longnet::config(file, attention)?).map_err(told)?;
    let mut recorder = context.recorder("weights");
    let weights = weights(file, &mut recorder, model.parameters(), &same)?;
    recorder.submit().map_err(told)?;
    let mut trainer =
        Trainer::from_weights(&context, model, weights, options(file)?).map_err(told)?;
    let reports = batches(file)?
        .iter()
        .map(|batches| trainer.step(batches)?.wait())
        .collect::<Result<Vec<StepReport>, _>>()
        .map_err(told)?;
    let of_each = |value: fn(&StepReport) -> f32| reports.iter().map(value).collect::<Vec<_>>();
    let steps = [reports.len()];
    compare(file, "losses", &steps, &of_each(|step| step.loss), report);
    let norms = of_each(|step| step.gradient_norm);
    compare(file, "grad_norms", &steps, &norms, report);
    let tensors: Vec<_> = trainer.weights().iter().map(|(_, tensor)| tensor).collect();
    let values = read(context.recorder("final weights"), &tensors, report)?;
    compare_parameters(
        file,
        "final.",
        trainer.weights().list(),
        &values,
        &same,
        report,
    );
    Ok(())
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
