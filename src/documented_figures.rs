//! Figures in the documentation that plans can tell: what is written there is what they say. A failure prints the text that should stand
//! there.

use crate::longnet::{LongNetConfig, OutputProjection};
use crate::models::StagedModel;
use crate::models::gigapath::{SlideEncoder, SlideEncoderConfig, SlideOutputs};
use crate::training::{LearningRate, Trainer, TrainingOptions};
use crate::{AttentionShape, DType, DeviceCaps, DilatedAttentionConfig, Result};

const GIGAPATH: &str = include_str!("../docs/gigapath.md");
const TRAINING: &str = include_str!("../docs/training.md");
const GUIDE: &str = include_str!("../docs/from_checkpoint_to_desktop_app.md");

/// Whether `document` says `text`, wherever its lines break.
#[track_caller]
fn assert_says(document: &str, text: &str) {
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(
        words(document).contains(&words(text)),
        "not written there: {text}"
    );
}

/// With spaces between groups of three digits.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / f64::from(1 << 20))
}

fn held_mebibytes(tiles: usize, activations: DType) -> Result<String> {
    let mut config = SlideEncoderConfig::base();
    config.activations = activations;
    let caps = DeviceCaps::webgpu_defaults();
    let plan = SlideEncoder::plan(&config, &[tiles], &SlideOutputs::default(), caps)?;
    Ok(mebibytes(plan.held_bytes))
}

#[test]
fn memory_of_a_large_slide() {
    let single = held_mebibytes(45_680, DType::F32).unwrap();
    let half = held_mebibytes(45_680, DType::F16).unwrap();
    assert_says(
        GIGAPATH,
        &format!("{single} MiB held in f32, {half} with f16 activations"),
    );
    assert_says(GUIDE, &format!("{half} instead of {single} MiB held"));
}

#[test]
fn a_slide_beyond_one_buffer_within_default_limits() {
    let held = held_mebibytes(200_000, DType::F32).unwrap();
    assert_says(GUIDE, &format!("a slide of 200 000 tiles holds {held} MiB"));
}

fn step_bytes(config: &LongNetConfig, shape: AttentionShape) -> String {
    let options = TrainingOptions::new(LearningRate::Constant(1e-3));
    let caps = DeviceCaps::webgpu_defaults();
    let plan = Trainer::plan(config, &[shape], &options, caps).unwrap();
    println!("{plan}");
    grouped(plan.requested_bytes)
}

#[test]
fn memory_of_training_steps() {
    let byte_model = |attention, layers, ffn_dim| {
        let mut config = LongNetConfig::decoder(attention, layers, ffn_dim);
        config.vocab_size = Some(256);
        config.output_projection = OutputProjection::Own;
        config.xpos_scale_base = Some(512.0);
        config
    };
    // The defaults of the example `train_lm`.
    let attention = DilatedAttentionConfig::new(4, 32, &[128, 512], &[1, 4]).unwrap();
    let shape = AttentionShape::new(4, 512).unwrap();
    let small = step_bytes(&byte_model(attention, 3, 512), shape);
    let (segments, rates) = ([2048, 8192, 65_536], [1, 4, 32]);
    let attention = DilatedAttentionConfig::new(8, 32, &segments, &rates).unwrap();
    let shape = AttentionShape::new(1, 65_536).unwrap();
    let long = step_bytes(&byte_model(attention, 1, 1024), shape);
    assert_says(
        TRAINING,
        &format!("| the model of `train_lm`, 4 x 512 bytes | {small} |"),
    );
    assert_says(TRAINING, &format!("65536/32 | {long} |"));
}
