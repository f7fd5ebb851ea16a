//! Layers over sequences that the device does not hold, against double precision and the same layers in core.

use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dilated_attention::half::f16;
use dilated_attention::longnet::{Call, CrossAttentionConfig, Input, LongNet, LongNetConfig};
use dilated_attention::nn::{Parameters, ProjectionNorm};
use dilated_attention::ops::TokenIds;
use dilated_attention::out_of_core::{OutOfCoreOptions, TokenSource};
use dilated_attention::testing::model;
use dilated_attention::{
    AttentionShape, Context, DType, DilatedAttentionConfig, Element, Error, Result, SliceOptions,
};

use crate::models::cases;
use crate::support::contexts::context_with;
use crate::support::kernel_contexts::kernel_contexts;
use crate::support::models::{
    Case, Inputs, assert_near, assert_within, by_name, draw, upload, wide,
};
use crate::support::numbers::uniform;

fn options(block_tokens: usize) -> OutOfCoreOptions {
    OutOfCoreOptions::new(64 << 20).with_block_tokens(NonZeroUsize::new(block_tokens))
}

/// A layer over `x`.
fn run<T: Element>(
    model: &LongNet,
    weights: &Parameters,
    index: usize,
    x: &[T],
    options: &OutOfCoreOptions,
) -> Result<Vec<T>> {
    let tokens = x.len() / model.config().attention().embed_dim();
    let plan = model.plan_layer_out_of_core(tokens, T::DTYPE, options)?;
    let mut y = vec![T::zeroed(); x.len()];
    let mut run = model.run_layer_out_of_core(&plan, weights, index, &x, &mut y)?;
    while !run.is_done() {
        run.advance()?;
    }
    assert!(run.progress().is_done());
    drop(run);
    Ok(y)
}

/// The input of the first layer and the outputs of all layers.
fn states(
    context: &Context,
    case: &Case,
    inputs: &Inputs,
    model: &LongNet,
    values: &[Vec<f32>],
) -> (Parameters, Vec<Vec<f32>>) {
    let mut recorder = context.recorder("in core");
    let weights = upload(&mut recorder, model.parameters(), values).unwrap();
    let dims = [1, inputs.shape.seq_len(), case.width()];
    let embeddings = recorder.upload("x", &dims, &inputs.x).unwrap();
    let vocab = case.config.vocab_size;
    let ids = vocab.map(|vocab| TokenIds::upload(&mut recorder, &inputs.tokens, vocab).unwrap());
    let input = match &ids {
        Some(ids) => Input::Tokens(ids),
        None => Input::Embeddings(&embeddings),
    };
    let call = Call::new(inputs.shape.clone());
    let output = model.forward(&mut recorder, &weights, input, &call, true);
    let states = output.unwrap().states;
    let downloads: Vec<_> = states
        .iter()
        .map(|state| recorder.download::<f32>(state).unwrap())
        .collect();
    recorder.submit().unwrap();
    let states = downloads.into_iter().map(|state| state.wait().unwrap());
    (weights, states.collect())
}

/// All options of layers, in blocks that end within segments.
#[test]
fn layers_equal_double_precision() {
    let context = &kernel_contexts()[0].context;
    for case in cases() {
        let model = LongNet::new(context, case.config.clone()).unwrap();
        let values = draw(model.parameters(), 5);
        let shape = &case.inputs.shape;
        let item = (0..shape.batch()).find(|item| shape.valid_len(*item) > 0);
        let item = item.unwrap();
        let inputs = case.inputs.part(item..item + 1, shape.valid_len(item));
        let (weights, states) = states(context, &case, &inputs, &model, &values);
        let named = by_name(model.parameters(), &values);
        let part = Case {
            inputs,
            ..case.clone()
        };
        let expected = match part.config.vocab_size {
            Some(_) => part.features(&named),
            None => {
                let x = wide(&part.inputs.x);
                let input = model::Input::Embeddings(&x);
                let reference = part.reference(&named);
                reference.features(&part.inputs.shape, input, None).unwrap()
            }
        };
        for block in [5, 16, 1000] {
            let mut x = states[0].clone();
            for (index, state) in states[1..].iter().enumerate() {
                x = run(&model, &weights, index, &x, &options(block)).unwrap();
                if block == 1000 {
                    // The same windows as in core.
                    assert_eq!(x, *state, "{}, layer {index}", case.name);
                }
            }
            let mut features = wide(&x);
            if model.final_norm().is_some() {
                let eps = case.config.norm_eps;
                features = model::layer_norm(&named, "layer_norm", &features, eps);
            }
            let features: Vec<f32> = features.iter().map(|x| *x as f32).collect();
            assert_near(case.name, &features, &expected);
        }
    }
}

/// Positions of xPos that are far from the first, in blocks of positions that have centres of their own.
#[test]
fn positions_are_those_of_the_sequence() {
    let context = &kernel_contexts()[0].context;
    let attention = DilatedAttentionConfig::new(1, 8, &[64, 512], &[1, 8]).unwrap();
    let mut config = LongNetConfig::decoder(attention, 1, 16);
    config.xpos_scale_base = Some(8.0);
    let tokens = 3000;
    let shape = AttentionShape::new(1, tokens).unwrap();
    let case = Case::new("xPos", config, shape);
    let model = LongNet::new(context, case.config.clone()).unwrap();
    let values = draw(model.parameters(), 5);
    let (weights, states) = states(context, &case, &case.inputs, &model, &values);
    let y = run(&model, &weights, 0, &states[0], &options(700)).unwrap();
    assert_near("layer with xPos", &y, &wide(&states[1]));
}

/// Each dispatch and copy in a slice of its own, or in many.
#[test]
fn slices_may_end_anywhere() {
    for on in kernel_contexts() {
        let context = &on.context;
        let attention = DilatedAttentionConfig::new(2, 8, &[16, 128], &[1, 4]).unwrap();
        let config = LongNetConfig::encoder(attention, 1, 24);
        let model = LongNet::new(context, config).unwrap();
        let weights = model.initial_weights(context, 1).unwrap();
        let x = uniform(4, 140 * 16);
        let at_once = options(60).with_slices(SliceOptions::default().with_target(Duration::MAX));
        let expected = run(&model, &weights, 0, &x, &at_once).unwrap();
        let cut = options(60).with_slices(SliceOptions::default().with_target(Duration::ZERO));
        assert_eq!(run(&model, &weights, 0, &x, &cut).unwrap(), expected);
    }
}

/// Stored in half precision, computed in f32.
#[test]
fn activations_are_stored_in_half_precision() {
    let context = &kernel_contexts()[0].context;
    let attention = DilatedAttentionConfig::new(2, 8, &[16, 100], &[1, 4]).unwrap();
    let config = LongNetConfig::encoder(attention, 1, 24);
    let model = LongNet::new(context, config).unwrap();
    let values = draw(model.parameters(), 5);
    let mut recorder = context.recorder("weights");
    let weights = upload(&mut recorder, model.parameters(), &values).unwrap();
    recorder.submit().unwrap();
    let x: Vec<f16> = uniform(4, 100 * 16)
        .into_iter()
        .map(f16::from_f32)
        .collect();
    let wide_x: Vec<f32> = x.iter().map(|x| x.to_f32()).collect();
    let expected = run(&model, &weights, 0, &wide_x, &options(30)).unwrap();
    let y = run(&model, &weights, 0, &x, &options(30)).unwrap();
    let y: Vec<f32> = y.iter().map(|y| y.to_f32()).collect();
    // Rounded once.
    assert_within("half precision", &y, &wide(&expected), 2f64.powi(-11));
}

/// A sink that fails once, and a source that does: the same run goes on.
#[test]
fn steps_that_failed_are_tried_again() {
    struct Once<'a>(&'a [f32], AtomicBool);
    impl TokenSource for Once<'_> {
        fn dtype(&self) -> DType {
            DType::F32
        }

        fn num_elements(&self) -> Option<u64> {
            None
        }

        fn read(&self, tokens: Range<usize>, rows: &mut [u8]) -> io::Result<()> {
            match tokens.end > 100 && self.1.swap(false, Ordering::Relaxed) {
                true => Err(io::Error::other("not now")),
                false => self.0.read(tokens, rows),
            }
        }
    }
    let context = context_with(&Default::default());
    let attention = DilatedAttentionConfig::new(2, 8, &[16, 128], &[1, 1]).unwrap();
    let model = LongNet::new(&context, LongNetConfig::encoder(attention, 1, 24)).unwrap();
    let weights = model.initial_weights(&context, 1).unwrap();
    let x = uniform(4, 300 * 16);
    let cut = options(30).with_slices(SliceOptions::default().with_target(Duration::ZERO));
    let expected = run(&model, &weights, 0, &x, &cut).unwrap();
    let plan = model.plan_layer_out_of_core(300, DType::F32, &cut).unwrap();
    let source = Once(&x, AtomicBool::new(true));
    let mut y = vec![0f32; x.len()];
    let mut again = model
        .run_layer_out_of_core(&plan, &weights, 0, &source, &mut y)
        .unwrap();
    let mut failures = 0;
    while !again.is_done() {
        failures += usize::from(again.advance().is_err());
    }
    drop(again);
    // A read ahead that fails is made again before it is missed.
    assert!(failures <= 1 && !source.1.load(Ordering::Relaxed));
    assert_eq!(y, expected);
}

#[test]
fn memory_of_a_layer_stays_within_the_budget() {
    let context = context_with(&Default::default());
    let attention = DilatedAttentionConfig::new(2, 16, &[256, 1 << 13], &[1, 64]).unwrap();
    let config = LongNetConfig::encoder(attention, 1, 128);
    let model = LongNet::new(&context, config).unwrap();
    let weights = model.initial_weights(&context, 1).unwrap();
    let tokens = 5000;
    let x = uniform(3, tokens * 32);
    let plan = |kib: u64| {
        model.plan_layer_out_of_core(tokens, DType::F32, &OutOfCoreOptions::new(kib << 10))
    };
    let error = plan(600).map(drop).unwrap_err();
    assert!(matches!(error, Error::PlanOverBudget { .. }), "{error}");
    for kib in [2 << 10, 24 << 10] {
        let plan = plan(kib).unwrap();
        assert!(plan.device_bytes <= kib << 10, "{plan}");
        context.wait().unwrap();
        context.pool().force_trim();
        context.pool().reset_peaks();
        let before = context.pool().stats().held_bytes.current;
        let mut y = vec![0f32; x.len()];
        let mut run = model
            .run_layer_out_of_core(&plan, &weights, 0, &x, &mut y)
            .unwrap();
        while !run.is_done() {
            run.advance().unwrap();
        }
        drop(run);
        let peak = context.pool().stats().held_bytes.peak - before;
        assert!(
            peak <= plan.device_bytes,
            "{peak} {}\n{plan}",
            plan.device_bytes
        );
    }
    // Halves, and windows of packed keys as long as what is held.
    let attention = DilatedAttentionConfig::new(2, 16, &[64, 1 << 13], &[1, 2]).unwrap();
    let model = LongNet::new(&context, LongNetConfig::encoder(attention, 1, 64)).unwrap();
    let weights = model.initial_weights(&context, 1).unwrap();
    let x: Vec<f16> = x.into_iter().map(f16::from_f32).collect();
    let small = OutOfCoreOptions::new(3 << 20);
    let plan = model
        .plan_layer_out_of_core(tokens, DType::F16, &small)
        .unwrap();
    context.wait().unwrap();
    context.pool().force_trim();
    context.pool().reset_peaks();
    let before = context.pool().stats().held_bytes.current;
    run(&model, &weights, 0, &x, &small).unwrap();
    let peak = context.pool().stats().held_bytes.peak - before;
    let bound = plan.device_bytes;
    assert!(
        plan.num_blocks() > 1 && peak <= bound,
        "{peak} {bound}\n{plan}"
    );
}

#[test]
fn what_no_layer_can_do_is_an_error() {
    let context = &kernel_contexts()[0].context;
    let attention = DilatedAttentionConfig::new(2, 8, &[16], &[1]).unwrap();
    let config = LongNetConfig::encoder(attention.clone(), 1, 24);
    let model = LongNet::new(context, config.clone()).unwrap();
    let weights = model.initial_weights(context, 1).unwrap();
    let x = vec![0f32; 40 * 16];
    let begin = |model: &LongNet, weights: &Parameters, index| {
        let plan = model.plan_layer_out_of_core(40, DType::F32, &options(16))?;
        let mut y = x.clone();
        let run = model.run_layer_out_of_core(&plan, weights, index, &x, &mut y);
        run.map(drop)
    };
    begin(&model, &weights, 0).unwrap();
    let error = begin(&model, &weights, 1).unwrap_err();
    assert!(matches!(error, Error::InvalidShape { .. }), "{error}");
    // Plans of attention and of layers are no plans of one another.
    let plan = model
        .plan_layer_out_of_core(40, DType::F32, &options(16))
        .unwrap();
    let alone = dilated_attention::DilatedAttention::new(context, attention.clone()).unwrap();
    let mut y = x.clone();
    let run = alone.run_out_of_core(&plan, [&x, &x, &x], &mut y);
    assert!(matches!(run.map(drop), Err(Error::InvalidConfig { .. })));
    let of_attention = alone
        .plan_out_of_core(40, DType::F32, &options(16))
        .unwrap();
    let run = model.run_layer_out_of_core(&of_attention, &weights, 0, &x, &mut y);
    assert!(matches!(run.map(drop), Err(Error::InvalidConfig { .. })));
    // Cross attention.
    let mut crossed = config;
    crossed.cross_attention = Some(CrossAttentionConfig {
        attention: DilatedAttentionConfig::new(2, 8, &[16], &[1]).unwrap(),
        projection_norm: ProjectionNorm::None,
    });
    let crossed = LongNet::new(context, crossed).unwrap();
    let weights = crossed.initial_weights(context, 1).unwrap();
    let error = begin(&crossed, &weights, 0).unwrap_err();
    assert!(matches!(error, Error::InvalidConfig { .. }), "{error}");
    let error = begin(&model, &weights, 0).unwrap_err();
    assert!(matches!(error, Error::ParameterMismatch { .. }), "{error}");
}
