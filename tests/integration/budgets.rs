//! A budget of what a plan says suffices: to load the weights or to draw them, and for the work over them. On one context, whose
//! pool is emptied in between.

use dilated_attention::longnet::{Call, Input, LongNet, LongNetConfig};
use dilated_attention::models::StagedModel;
use dilated_attention::models::gigapath::{Slide, SlideEncoder, SlideEncoderConfig, SlideOutputs};
use dilated_attention::models::longvit::{Images, LongVit, LongVitConfig, LongVitOutputs};
use dilated_attention::nn::Parameters;
use dilated_attention::ops::TokenIds;
use dilated_attention::training::Trainer;
use dilated_attention::{
    AttentionShape, Context, ContextOptions, DType, DilatedAttentionConfig, Result, WeightFile,
    WeightWriter,
};

use crate::support::contexts::context_with;
use crate::support::giving_up::settled;
use crate::support::models::{draw, upload};
use crate::support::numbers::uniform;
use crate::support::training::{VOCAB, batch, options, with_layers};

/// Runs `work` in a pool that holds nothing and may hold `budget_bytes`, which none of it may be refused for.
#[track_caller]
fn within<T>(context: &Context, budget_bytes: u64, work: impl FnOnce() -> Result<T>) {
    let pool = context.pool();
    assert_eq!(settled(context, 0), 0, "{}", pool.report());
    // Another thread may be about to tell that the device is done with the last of it.
    for _ in 0..100 {
        pool.trim();
        if pool.stats().held_bytes.current == 0 {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
        context.wait().unwrap();
    }
    assert_eq!(pool.stats().held_bytes.current, 0, "{}", pool.report());
    pool.set_budget_bytes(Some(budget_bytes));
    pool.reset_peaks();
    let done = work().map(drop);
    let held_bytes = pool.stats().held_bytes.peak;
    pool.set_budget_bytes(None);
    assert!(done.is_ok(), "of {budget_bytes} bytes: {:?}", done.err());
    assert!(held_bytes <= budget_bytes);
    // A plan of much more than that would be worth little.
    assert!(
        budget_bytes < held_bytes + held_bytes / 4,
        "{held_bytes} of {budget_bytes}"
    );
}

/// The file of weights drawn for a list.
fn file(
    context: &Context,
    list: &std::sync::Arc<dilated_attention::nn::ParameterList>,
) -> WeightFile {
    let mut recorder = context.recorder("weights");
    let weights: Parameters = upload(&mut recorder, list, &draw(list, 3)).unwrap();
    recorder.submit().unwrap();
    let bytes = pollster::block_on(
        WeightWriter::new()
            .with_part("", &weights)
            .to_bytes(context),
    );
    WeightFile::from_bytes(bytes.unwrap()).unwrap()
}

fn attention() -> DilatedAttentionConfig {
    DilatedAttentionConfig::new(2, 16, &[8, 20], &[1, 2])
        .unwrap()
        .with_torchscale()
}

/// Width of the networks of models with few weights and with several parts of them.
const FFN_DIMS: [usize; 2] = [64, 60_000];

fn context() -> Context {
    context_with(&ContextOptions::default())
}

#[test]
fn of_a_slide_encoder() {
    let context = context();
    for ffn_dim in FFN_DIMS {
        let mut config = SlideEncoderConfig::base();
        config.attention = attention();
        (config.feature_dim, config.num_layers, config.ffn_dim) = (12, 2, ffn_dim);
        let encoder = SlideEncoder::new(&context, config.clone()).unwrap();
        let file = file(&context, encoder.parameters());
        let outputs = SlideOutputs::default();
        for tiles in [1, 10, 70] {
            let features = uniform(1, tiles * 12);
            let coords: Vec<[f32; 2]> = (0..tiles).map(|i| [256.0 * i as f32, 0.0]).collect();
            let slides = [Slide {
                features: &features,
                coords: &coords,
            }];
            let plan = SlideEncoder::plan_for(&context, &config, &[tiles], &outputs).unwrap();
            for loads in [true, false] {
                within(&context, plan.held_bytes, || {
                    let weights = match loads {
                        true => encoder.load(&context, &file)?,
                        false => encoder.initial_weights(&context, 1)?,
                    };
                    let run = encoder.run(&context, &weights, &slides, &outputs)?;
                    run.blocking()
                });
            }
        }
    }
}

#[test]
fn of_longvit() {
    let context = context();
    for (ffn_dim, activations) in [
        (FFN_DIMS[0], DType::F32),
        (FFN_DIMS[1], DType::F32),
        (FFN_DIMS[0], DType::F16),
    ] {
        let mut config = LongVitConfig::published(3);
        config.attention = attention();
        config.activations = activations;
        (config.num_layers, config.ffn_dim) = (2, ffn_dim);
        (config.image_size, config.patch_size) = (16, 4);
        let model = LongVit::new(&context, config.clone()).unwrap();
        let file = file(&context, model.parameters());
        for size in [[1, 8, 8], [2, 24, 20]] {
            let pixels = &uniform(1, 3 * size.iter().product::<usize>());
            let outputs = LongVitOutputs::default();
            let plan = LongVit::plan_for(&context, &config, size, &outputs).unwrap();
            within(&context, plan.held_bytes, || {
                let weights = model.load(&context, &file)?;
                let run = model.run(&context, &weights, Images { pixels, size }, &outputs)?;
                run.blocking()
            });
        }
    }
}

/// Models without a plan of their own are planned by doing the same on a dry run.
#[test]
fn of_longnet() {
    let device = context();
    for ffn_dim in FFN_DIMS {
        let mut config = LongNetConfig::encoder(attention(), 1, ffn_dim);
        config.vocab_size = Some(VOCAB);
        let run = |context: &Context| -> Result<_> {
            let model = LongNet::new(context, config.clone())?;
            let weights = model.initial_weights(context, 1)?;
            let mut recorder = context.recorder("forward");
            let tokens = TokenIds::upload(&mut recorder, &[3; 40], VOCAB)?;
            let call = Call::new(AttentionShape::new(1, 40)?);
            let input = Input::Tokens(&tokens);
            let output = model.forward(&mut recorder, &weights, input, &call, false)?;
            let download = recorder.download::<f32>(&output.features)?;
            recorder.submit()?;
            Ok(download)
        };
        let dry_run = Context::dry_run(device.caps().clone());
        drop(run(&dry_run).unwrap());
        let budget_bytes = dry_run.pool().stats().held_bytes.peak;
        within(&device, budget_bytes, || run(&device)?.wait());
    }
}

#[test]
fn of_training() {
    let context = context();
    // The second with several parts of weights.
    for (vocab, ffn_dim) in [(VOCAB, 40), (VOCAB, 300_000)] {
        let mut config = with_layers(1);
        config.vocab_size = Some(vocab);
        config.ffn_dim = ffn_dim;
        let batches = [batch(0, 1, 20)];
        let shapes = batches.each_ref().map(|batch| batch.shape().clone());
        let caps = context.caps().clone();
        let plan = Trainer::plan(&config, &shapes, &options(), caps).unwrap();
        within(&context, plan.held_bytes, || {
            let model = LongNet::new(&context, config.clone())?;
            let mut trainer = Trainer::new(&context, model, options())?;
            for _ in 0..2 {
                trainer.step(&batches)?.wait()?;
            }
            Ok(())
        });
    }
}
