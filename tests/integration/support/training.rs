//! A small model in training.

use dilated_attention::longnet::{LongNet, LongNetConfig, OutputProjection};
use dilated_attention::training::{Batch, LearningRate, StepReport, Trainer, TrainingOptions};
use dilated_attention::{Context, DilatedAttentionConfig};

pub const VOCAB: usize = 19;

/// A small model with everything that a training step may meet.
pub fn config() -> LongNetConfig {
    with_layers(2)
}

/// The same with another number of layers.
pub fn with_layers(num_layers: usize) -> LongNetConfig {
    let attention = DilatedAttentionConfig::new(2, 8, &[4, 8, 32], &[1, 2, 4]).expect("valid");
    let mut config = LongNetConfig::decoder(attention, num_layers, 40);
    config.vocab_size = Some(VOCAB);
    config.output_projection = OutputProjection::Own;
    config.xpos_scale_base = Some(512.0);
    config
}

pub fn options() -> TrainingOptions {
    TrainingOptions {
        seed: 5,
        ..TrainingOptions::new(LearningRate::Constant(3e-3))
    }
}

pub fn trainer(context: &Context, config: LongNetConfig, options: TrainingOptions) -> Trainer {
    let model = LongNet::new(context, config).expect("valid");
    Trainer::new(context, model, options).expect("leases")
}

/// Tokens that follow a rule, so that there is something to learn.
pub fn sequence(begin: u32, len: usize) -> Vec<u32> {
    (0..len as u32)
        .map(|i| (begin + i * i % 7 + i / 3) % VOCAB as u32)
        .collect()
}

pub fn batch(begin: u32, items: u32, len: usize) -> Batch {
    let sequences: Vec<Vec<u32>> = (0..items)
        .map(|item| sequence(begin + 5 * item, len))
        .collect();
    let sequences: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
    Batch::next_tokens(&sequences).expect("a batch")
}

pub fn step(trainer: &mut Trainer, batches: &[Batch]) -> StepReport {
    trainer
        .step(batches)
        .expect("submits")
        .wait()
        .expect("runs")
}

pub fn weights(trainer: &Trainer, context: &Context) -> Vec<Vec<f32>> {
    let mut recorder = context.recorder("weights");
    let downloads = trainer.weights().download(&mut recorder).expect("records");
    recorder.submit().expect("submits");
    downloads
        .iter()
        .map(|download| download.wait().expect("arrives"))
        .collect()
}

pub fn bits(weights: &[Vec<f32>]) -> Vec<u32> {
    weights
        .iter()
        .flatten()
        .map(|value| value.to_bits())
        .collect()
}
