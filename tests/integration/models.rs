//! Whole models against double precision: features, losses, and every gradient against finite differences.

use dilated_attention::longnet::{LongNet, LongNetConfig, OutputProjection, Recompute};
use dilated_attention::nn::{ParameterList, ProjectionNorm};
use dilated_attention::ops::Activation;
use dilated_attention::{
    AttentionShape, Context, DilatedAttentionConfig, HeadOffsets, Heads, MixGradient,
};

use crate::support::gradients::check_gradients;
use crate::support::kernel_contexts::{default_limits, kernel_contexts, tiny_bindings};
use crate::support::models::{
    Case, INPUT, Inputs, Run, assert_near, assert_within, by_name, draw, largest, wide,
};

fn attention(heads: usize, segments: &[usize], rates: &[usize]) -> DilatedAttentionConfig {
    DilatedAttentionConfig::new(heads, 8, segments, rates).unwrap()
}

fn shape(batch: usize, seq_len: usize) -> AttentionShape {
    AttentionShape::new(batch, seq_len).unwrap()
}

/// A language model of `config`.
fn with_tokens(config: LongNetConfig, vocab: usize, projection: OutputProjection) -> LongNetConfig {
    let mut config = config;
    config.vocab_size = Some(vocab);
    config.output_projection = projection;
    config.embedding_scale = 3.0;
    config
}

/// Models that between them have every option.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |name, config, shape| {
        cases.push(Case::new(name, config, shape));
    };
    // Rates that divide and rates that do not; zero keys and moved rows, with the true gradient.
    let moved =
        |config: DilatedAttentionConfig| config.with_torchscale().with_gradient(MixGradient::Exact);

    let config = LongNetConfig::encoder(attention(3, &[8, 30], &[1, 2]), 2, 37);
    add("sub-LN encoder", config, shape(2, 41));

    let mut config = LongNetConfig::encoder(moved(attention(2, &[5, 13], &[2, 3])), 2, 40);
    config.activation = Activation::Relu;
    let ragged = shape(3, 29).with_valid_lens(&[29, 0, 17]).unwrap();
    add(
        "pre-norm, moved rows, ragged, ReLU",
        config.with_pre_norm(),
        ragged,
    );

    let config = LongNetConfig::decoder(attention(2, &[4, 16, 64], &[1, 2, 4]), 2, 33);
    let mut config = with_tokens(config, 51, OutputProjection::Own);
    config.xpos_scale_base = Some(64.0);
    config.embedding_norm = true;
    add("decoder with xPos", config, shape(2, 50));

    let config = LongNetConfig::decoder(moved(attention(3, &[7, 20], &[1, 3])), 2, 29);
    let mut config = with_tokens(config.with_post_norm(), 23, OutputProjection::Tied);
    config.learned_positions = Some(60);
    config.embedding_norm = true;
    add("post-norm, learned positions, tied", config, shape(2, 43));

    let partitioned = attention(3, &[9, 16], &[2, 1])
        .with_heads(Heads::Partitioned)
        .with_head_offsets(HeadOffsets::RoundRobin);
    let config = LongNetConfig::decoder(partitioned, 3, 31);
    let mut config = with_tokens(config.with_deep_norm(), 19, OutputProjection::Own);
    config.projection_norm = ProjectionNorm::QueryKey;
    config.xpos_scale_base = Some(512.0);
    config.learned_positions = Some(37);
    add(
        "DeepNorm, head groups, norms of queries and keys",
        config,
        shape(1, 37),
    );

    let mut config = LongNetConfig::encoder(attention(2, &[16], &[1]), 1, 20).with_pre_norm();
    config.residual_scale = 1.3;
    config.activation = Activation::Silu;
    config.embedding_norm = true;
    config.learned_positions = Some(50);
    add("scaled residuals, pre-norm, SiLU", config, shape(2, 25));

    // With one branch there is nothing to detach: torchscale's gradient is the true one.
    let config = LongNetConfig::decoder(attention(2, &[12], &[1]).with_torchscale(), 1, 16);
    let config = with_tokens(config, 17, OutputProjection::Tied);
    add("torchscale's gradient of one branch", config, shape(2, 30));
    cases
}

pub fn model(context: &Context, case: &Case) -> (LongNet, Vec<Vec<f32>>) {
    let model = LongNet::new(context, case.config.clone()).unwrap();
    let values = draw(model.parameters(), 5);
    (model, values)
}

/// Compares a run with double precision.
pub fn check(case: &Case, list: &ParameterList, values: &[Vec<f32>], run: &Run, samples: usize) {
    let mut values = by_name(list, values);
    let embeddings = case.embeddings(&values);
    let mut given: Vec<(String, &[f32])> = Vec::new();
    for (spec, gradient) in list.specs().iter().zip(&run.gradients) {
        given.push((spec.name.clone(), gradient));
    }
    if case.config.vocab_size.is_some() {
        let features = case.features(&values);
        assert_near(case.name, &run.features, &features);
        let mean = case.reference(&values).loss(&features, &case.inputs.labels);
        let loss = case.inputs.counted() as f64 * mean;
        assert_near(case.name, &[run.loss], &[loss]);
        check_gradients(case.name, &given, &values, samples, |values| {
            case.objective(values)
        });

        given.clear();
    }
    values.insert(INPUT.to_owned(), embeddings);
    assert_near(case.name, &run.features, &case.features(&values));
    given.push((INPUT.to_owned(), &run.dinput));
    check_gradients(case.name, &given, &values, samples, |values| {
        case.objective(values)
    });
}

/// On a device whose memory is full of NaN before use.
#[test]
fn models_and_their_gradients_equal_double_precision() {
    let on = &kernel_contexts()[0].context;
    for case in cases() {
        let (model, values) = model(on, &case);
        let run = case.run(on, &values, Recompute::Insides, None).unwrap();
        check(&case, model.parameters(), &values, &run, 3);
    }
}

/// Bindings of 16 KiB: tables, activations, logits and the insides of feed-forward networks all need windows.
#[test]
fn models_in_windows_equal_double_precision() {
    let on = &tiny_bindings().context;
    let attention = attention(3, &[40, 150], &[1, 4]).with_torchscale();
    let config = LongNetConfig::decoder(attention.with_gradient(MixGradient::Exact), 1, 60);
    let mut config = with_tokens(config, 310, OutputProjection::Own);
    config.learned_positions = Some(290);
    config.xpos_scale_base = Some(512.0);
    let case = Case::new("windows", config, shape(2, 210));
    let (model, values) = model(on, &case);
    let run = case.run(on, &values, Recompute::Insides, None).unwrap();
    check(&case, model.parameters(), &values, &run, 1);
}

/// From run to run, with layers computed again, with dropout too, and with memory that is not filled with NaN.
#[test]
fn runs_are_equal_bit_for_bit() {
    // Of the same features, hence with the same kernels.
    let [poisoned, own] = [&default_limits().context, &kernel_contexts()[1].context];
    for mut case in cases() {
        let (_, values) = model(poisoned, &case);
        let mut without = None;
        for step_seed in [None, Some(3)] {
            let run = |on, recompute| case.run(on, &values, recompute, step_seed).unwrap();
            let first = run(poisoned, Recompute::Insides);
            assert!(first == run(poisoned, Recompute::Insides), "{}", case.name);
            assert!(first == run(poisoned, Recompute::Layers), "{}", case.name);
            assert!(first == run(own, Recompute::Insides), "{}", case.name);
            // Without dropout, a seed changes nothing.
            let without = without.get_or_insert_with(|| first.clone());
            assert!(first == *without, "{}", case.name);
        }
        (case.config.dropout, case.config.activation_dropout) = (0.2, 0.1);
        let run = |recompute, seed| case.run(poisoned, &values, recompute, seed).unwrap();
        let first = run(Recompute::Insides, Some(3));
        assert!(first == run(Recompute::Insides, Some(3)), "{}", case.name);
        assert!(first == run(Recompute::Layers, Some(3)), "{}", case.name);
        assert!(first.features != run(Recompute::Insides, Some(4)).features);
        assert!(
            Some(run(Recompute::Insides, None)) == without,
            "{}",
            case.name
        );
    }
}

/// Gradients of a whole batch are those of its items one after the other.
#[test]
fn gradients_accumulate() {
    let on = &kernel_contexts()[0].context;
    for mut case in cases() {
        case.inputs = Inputs::new(&case.config, shape(4, 30));
        let (model, values) = model(on, &case);
        let run = |parts: &[Inputs]| {
            let recompute = Recompute::Insides;
            case.run_parts(on, &model, &values, parts, recompute, None)
                .unwrap()
        };
        let whole = run(std::slice::from_ref(&case.inputs));
        let halves = run(&[0..2, 2..4].map(|items| case.inputs.part(items, 30)));
        assert_same(&case, &model, &halves, &whole);
    }
}

/// A ragged batch is its items alone, each of its own length.
#[test]
fn a_ragged_batch_is_its_items_alone() {
    let on = &kernel_contexts()[0].context;
    let lens = [31, 1, 18];
    for mut case in cases() {
        let ragged = shape(3, 31).with_valid_lens(&lens).unwrap();
        case.inputs = Inputs::new(&case.config, ragged);
        let (model, values) = model(on, &case);
        let run = |parts: &[Inputs]| {
            let recompute = Recompute::Insides;
            case.run_parts(on, &model, &values, parts, recompute, None)
                .unwrap()
        };
        let mut whole = run(std::slice::from_ref(&case.inputs));
        let parts = [0, 1, 2].map(|item| case.inputs.part(item..item + 1, lens[item]));
        let alone = run(&parts);
        let width = case.width();
        let exists = |index: usize| {
            let row = index / width;
            row % 31 < lens[row / 31]
        };
        for values in [&mut whole.features, &mut whole.dinput] {
            let kept = values
                .iter()
                .enumerate()
                .filter(|(index, _)| exists(*index));
            *values = kept.map(|(_, value)| *value).collect();
        }
        assert_same(&case, &model, &alone, &whole);
    }
}

/// Whether two runs differ by rounding alone.
#[track_caller]
fn assert_same(case: &Case, model: &LongNet, given: &Run, expected: &Run) {
    let near = |name: &str, given: &[f32], expected: &[f32], largest_of_all: f64| {
        let expected = wide(expected);
        // What cancels leaves a rounding of what does not.
        let tolerance = (1e-7 * largest_of_all / largest(&expected)).max(1e-5);
        assert_within(
            &format!("{}: {name}", case.name),
            given,
            &expected,
            tolerance,
        );
    };
    near("features", &given.features, &expected.features, 0.0);
    near("dinput", &given.dinput, &expected.dinput, 0.0);
    near("loss", &[given.loss], &[expected.loss], 0.0);
    let all: Vec<f64> = expected.gradients.iter().flat_map(|g| wide(g)).collect();
    let sets = given.gradients.iter().zip(&expected.gradients);
    for (spec, (given, expected)) in model.parameters().specs().iter().zip(sets) {
        near(&spec.name, given, expected, largest(&all));
    }
}
