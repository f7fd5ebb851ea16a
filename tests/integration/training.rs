//! Training: what a step does, what it leases, and that nothing is lost when one fails.

use dilated_attention::longnet::{LongNet, LongNetConfig, OutputProjection, Recompute};
use dilated_attention::ops::IGNORED_LABEL;
use dilated_attention::pool::PoolError;
use dilated_attention::training::{
    AdamWOptions, AdamWStep, Batch, LearningRate, Optimizer, Trainer, TrainingOptions, TrainingStep,
};
use dilated_attention::{
    AttentionShape, Context, ContextOptions, DeviceCaps, DilatedAttentionConfig, Error, Mask,
};
use dilated_attention::{Progress, SliceOptions};

use crate::support::contexts::{context_with, contexts};
use crate::support::kernel_contexts::kernel_contexts;
use crate::support::training::{
    VOCAB, batch, bits, config, options, sequence, step, trainer, weights, with_layers,
};

#[test]
fn a_model_learns_and_the_plan_knew_the_bytes() {
    for (limits, context) in contexts() {
        for (recompute, dropout) in [(Recompute::Insides, 0.0), (Recompute::Layers, 0.2)] {
            let mut config = config();
            config.dropout = dropout;
            config.activation_dropout = dropout;
            config.learned_positions = (dropout > 0.0).then_some(100);
            let options = TrainingOptions {
                recompute,
                ..options()
            };
            let batches = [batch(0, 2, 71), batch(3, 1, 50)];
            let shapes = batches.each_ref().map(|batch| batch.shape().clone());
            let plan =
                Trainer::plan(&config, &shapes, &options, context.caps().clone()).expect("plans");
            let before = context.pool().stats().requested_bytes.current;
            let mut trainer = trainer(&context, config, options);
            let kept = context.pool().stats().requested_bytes.current - before;
            assert_eq!(kept, plan.kept_bytes, "{limits}\n{plan}");

            let first = step(&mut trainer, &batches);
            assert_eq!(first.labels, 70 * 2 + 49);
            // Three more, since policies settle.
            for _ in 0..3 {
                step(&mut trainer, &batches);
            }
            context.wait().expect("waits");
            context.pool().reset_peaks();
            let warm = context.pool().stats();
            let mut last = first;
            for _ in 0..20 {
                last = step(&mut trainer, &batches);
                let stats = context.pool().stats();
                assert_eq!(
                    stats.requested_bytes.peak - before,
                    plan.requested_bytes,
                    "{limits}\n{plan}\n{stats}"
                );
            }
            let stats = context.pool().stats();
            assert_eq!(stats.creates, warm.creates, "{limits}\n{stats}");
            assert!(stats.identities_hold());
            assert!(plan.requested_bytes <= plan.held_bytes);
            assert_eq!((last.step, trainer.steps()), (24, 24));
            assert!(last.loss < 0.8 * first.loss, "{first:?} {last:?}");
            drop(trainer);
            assert_eq!(context.pool().stats().requested_bytes.current, before);
        }
    }
}

#[test]
fn recomputing_layers_keeps_one_tensor_a_layer() {
    let plan = |num_layers, recompute| {
        let attention = DilatedAttentionConfig::new(8, 32, &[256, 4096], &[1, 8]).expect("valid");
        let mut config = LongNetConfig::decoder(attention, num_layers, 1024);
        config.vocab_size = Some(256);
        config.output_projection = OutputProjection::Own;
        let options = TrainingOptions {
            recompute,
            ..options()
        };
        let shapes = [AttentionShape::new(1, 8192).expect("valid")];
        let caps = DeviceCaps::webgpu_defaults();
        Trainer::plan(&config, &shapes, &options, caps).expect("plans")
    };
    let activations = 8192 * 256 * 4;
    let of_a_layer = |recompute| {
        // Enough that what one layer needs for itself does not show.
        let [few, many] = [12, 20].map(|layers| plan(layers, recompute));
        let kept = many.kept_bytes - few.kept_bytes;
        (many.requested_bytes - few.requested_bytes - kept) / 8
    };
    let parameters = 64 << 10;
    // The input; beside it parameters of dispatches.
    let layers = of_a_layer(Recompute::Layers);
    assert!(
        (activations..activations + parameters).contains(&layers),
        "{layers}"
    );
    // Inputs of two blocks, q, k, v, mixed heads and their softmax state.
    let insides = of_a_layer(Recompute::Insides);
    let kept = 6 * activations + activations / 16;
    assert!(
        (kept..kept + parameters).contains(&insides),
        "{insides} {kept}"
    );
    let plan = plan(12, Recompute::Layers);
    assert!(
        plan.saved_by_recomputing_bytes > 11 * 5 * activations,
        "{plan}"
    );
}

#[test]
fn a_step_over_parts_is_the_step_over_all() {
    for (_, context) in contexts() {
        let sequences: Vec<Vec<u32>> = (0..4).map(|item| sequence(5 * item, 41)).collect();
        let part = |(begin, end): (usize, usize)| {
            let sequences: Vec<&[u32]> = sequences[begin..end].iter().map(Vec::as_slice).collect();
            Batch::next_tokens(&sequences).expect("a batch")
        };
        let mut results = Vec::new();
        for ends in [&[4][..], &[1, 4], &[1, 2, 3, 4]] {
            let begins = std::iter::once(0).chain(ends.iter().copied());
            let batches: Vec<Batch> = begins.zip(ends.iter().copied()).map(&part).collect();
            let options = TrainingOptions {
                // Steps follow gradients, not their signs, so that rounding stays rounding.
                optimizer: AdamWOptions {
                    eps: 1.0,
                    ..AdamWOptions::default()
                },
                ..options()
            };
            let mut trainer = trainer(&context, config(), options);
            let reports = [0; 3].map(|_| step(&mut trainer, &batches));
            results.push((reports, weights(&trainer, &context)));
        }
        let (whole, rest) = results.split_first().expect("three");
        for (reports, weights) in rest {
            for (part, whole) in reports.iter().zip(&whole.0) {
                assert_eq!(part.labels, whole.labels);
                assert!((part.loss - whole.loss).abs() < 1e-5 * whole.loss);
                let norms = (part.gradient_norm - whole.gradient_norm).abs();
                assert!(norms < 1e-4 * whole.gradient_norm);
            }
            for (part, whole) in weights.iter().flatten().zip(whole.1.iter().flatten()) {
                assert!((part - whole).abs() < 1e-6, "{part} {whole}");
            }
        }
    }
}

#[test]
fn runs_are_bit_identical_and_seeds_are_not() {
    let [(_, context), _] = contexts();
    let run = |seed| {
        let mut config = config();
        config.dropout = 0.1;
        let mut trainer = trainer(&context, config, TrainingOptions { seed, ..options() });
        for begin in 0..3 {
            step(&mut trainer, &[batch(begin, 1, 40)]);
        }
        bits(&weights(&trainer, &context))
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

#[test]
fn evaluation_changes_nothing_and_agrees_with_the_step() {
    let on = &kernel_contexts()[0].context;
    let mut trainer = trainer(on, config(), options());
    let batches = [batch(1, 2, 30), batch(2, 1, 33), batch(4, 1, 9)];
    let before = bits(&weights(&trainer, on));
    let evaluated = trainer.evaluate_blocking(&batches).expect("runs");
    let mut seen = Vec::new();
    let slices = SliceOptions::default();
    let in_slices = trainer.evaluate_in_slices(&batches, slices, |progress| seen.push(progress));
    assert_eq!(pollster::block_on(in_slices), Ok(evaluated));
    assert!(seen.len() >= batches.len() && seen.is_sorted_by_key(|progress| progress.done));
    assert!(
        seen.iter()
            .all(|progress| progress.total == 2 * 29 + 32 + 8)
    );
    assert!(seen.last().is_some_and(Progress::is_done));
    assert_eq!(bits(&weights(&trainer, on)), before);
    // The mean over all labels, not over batches.
    let mut sum = 0.0;
    for batch in &batches {
        let one = trainer.evaluate_blocking(std::slice::from_ref(batch));
        let one = one.expect("runs");
        assert_eq!(one.labels, batch.num_labels());
        sum += f64::from(one.loss) * one.labels as f64;
    }
    let mean = sum / evaluated.labels as f64;
    assert!((f64::from(evaluated.loss) - mean).abs() < 1e-6 * mean);
    let stepped = step(&mut trainer, &batches);
    assert_eq!(evaluated.labels, stepped.labels);
    assert!((evaluated.loss - stepped.loss).abs() < 1e-6 * stepped.loss);
    assert_eq!((evaluated.steps, stepped.step), (0, 1));
    assert_ne!(bits(&weights(&trainer, on)), before);
    assert_eq!(trainer.evaluate_blocking(&batches).expect("runs").steps, 1);
    let error = trainer.evaluate_blocking(&[]).expect_err("no batch");
    assert!(
        matches!(&error, Error::InvalidShape { what, .. } if *what == "number of batches"),
        "{error}"
    );
}

/// Memory of an evaluation is that of two batches, however many there are.
#[test]
fn evaluations_of_many_batches_need_no_more_than_of_two() {
    let on = &context_with(&ContextOptions::default());
    let trainer = trainer(on, with_layers(1), options());
    let peak = |count| {
        let batches: Vec<Batch> = (0..count).map(|begin| batch(begin, 1, 20)).collect();
        on.wait().expect("waits");
        on.pool().reset_peaks();
        trainer.evaluate_blocking(&batches).expect("runs");
        on.pool().stats().requested_bytes.peak
    };
    assert!(peak(40) <= peak(2));
}

/// Slices of one workgroup each.
fn smallest() -> SliceOptions {
    SliceOptions::default().with_target(std::time::Duration::ZERO)
}

#[test]
fn in_slices_a_step_has_happened_whole_or_not() {
    let on = &kernel_contexts()[0].context;
    let mut config = with_layers(1);
    config.dropout = 0.1;
    let batches = [batch(0, 1, 9), batch(3, 1, 6)];
    let mut at_once = trainer(on, config.clone(), options());
    let mut in_slices = trainer(on, config.clone(), options());
    let mut num_slices = 0;
    for number in 1..=2 {
        let before = bits(&weights(&in_slices, on));
        // Cancelled before anything, on the way, before the update.
        let cancelled = match number {
            1 => vec![0, 1, 40],
            _ => vec![num_slices / 2, num_slices - 1],
        };
        for count in cancelled {
            let TrainingStep {
                recorder, pending, ..
            } = in_slices.record_step(&batches).expect("records");
            assert_eq!(pending.step(), number);
            let mut sliced = recorder.submit_in_slices(smallest());
            for _ in 0..count {
                assert!(!pollster::block_on(sliced.step()).expect("runs").is_done());
            }
            assert!(!pending.is_ready());
            // To wait too early is an error, and may be done again.
            assert!(matches!(pending.wait(), Err(Error::NotSubmitted { .. })));
            // Until it is known what becomes of it, nothing is told that depends on it.
            let refused = |result: Result<(), Error>| {
                let error = result.expect_err("out of order");
                assert!(matches!(error, Error::OutOfOrder { .. }), "{error}");
                assert!(
                    error
                        .to_string()
                        .contains(&format!("step {number} is recorded")),
                    "{error}"
                );
            };
            refused(in_slices.step(&batches).map(drop));
            refused(in_slices.record_step(&batches).map(drop));
            refused(in_slices.evaluate_blocking(&batches).map(drop));
            refused(in_slices.save("never.safetensors", &[]));
            drop(sliced);
            let error = pending.wait().expect_err("is cancelled");
            assert!(matches!(error, Error::DownloadAbandoned { .. }), "{error}");
            assert_eq!(in_slices.steps(), number - 1);
            assert_eq!(bits(&weights(&in_slices, on)), before);
        }
        // Refused at its last slice.
        if number == 2 {
            let recorder = in_slices.record_step(&batches).expect("records").recorder;
            let mut sliced = recorder.submit_in_slices(smallest());
            for _ in 0..num_slices - 1 {
                pollster::block_on(sliced.step()).expect("runs");
            }
            on.pool().set_budget_bytes(Some(1));
            let error = pollster::block_on(sliced.step()).map(drop);
            on.pool().set_budget_bytes(None);
            let refused = matches!(error, Err(Error::Pool(PoolError::BudgetExceeded { .. })));
            assert!(refused, "{error:?}");
            assert_eq!(in_slices.steps(), 1);
            assert_eq!(bits(&weights(&in_slices, on)), before);
        }
        let expected = step(&mut at_once, &batches);
        let recorded = in_slices.record_step(&batches).expect("records");
        num_slices = 0;
        let mut last = None;
        let report = pollster::block_on(recorded.in_slices(smallest(), |progress| {
            num_slices += 1;
            last = Some(progress);
        }));
        assert_eq!(report, Ok(expected));
        assert!(last.is_some_and(|progress| progress.is_done()) && num_slices > 100);
        assert_eq!(in_slices.steps(), number);
        // Weights, and means, which the second step depends on.
        assert_eq!(bits(&weights(&in_slices, on)), bits(&weights(&at_once, on)));
    }
    // What was measured tells the time.
    let recorded = in_slices.record_step(&batches).expect("records");
    let time = recorded.expected_time();
    assert!(time.is_some_and(|time| !time.is_zero()), "{time:?}");
}

/// A step in an application's encoder is done when the device is.
#[test]
fn a_step_in_an_encoder_is_done_when_the_device_is() {
    let on = &kernel_contexts()[0].context;
    let batches = [batch(0, 1, 9)];
    let mut at_once = trainer(on, with_layers(1), options());
    let mut encoded = trainer(on, with_layers(1), options());
    let before = bits(&weights(&encoded, on));
    for is_submitted in [false, true] {
        let recorded = encoded.record_step(&batches).expect("records");
        let mut encoder = on.device().create_command_encoder(&Default::default());
        recorded.recorder.encode(&mut encoder).expect("encodes");
        let error = encoded.step(&batches).map(drop).expect_err("out of order");
        assert!(matches!(error, Error::OutOfOrder { .. }), "{error}");
        if is_submitted {
            on.queue().submit([encoder.finish()]);
            let report = recorded.pending.wait().expect("runs");
            assert_eq!(report, step(&mut at_once, &batches));
            on.wait().expect("waits");
        } else {
            drop(encoder);
            recorded.pending.wait().expect_err("was dropped");
            assert_eq!(bits(&weights(&encoded, on)), before);
        }
        assert_eq!(encoded.steps(), u64::from(is_submitted));
    }
    assert_eq!(bits(&weights(&encoded, on)), bits(&weights(&at_once, on)));
    assert_eq!(step(&mut encoded, &batches).step, 2);
}

#[test]
fn options_change_between_steps() {
    let on = &kernel_contexts()[0].context;
    let batches = [batch(0, 1, 20)];
    let changed = TrainingOptions {
        learning_rate: LearningRate::from_fn(|step| 1e-2 / step as f32),
        optimizer: AdamWOptions {
            max_norm: Some(0.1),
            ..AdamWOptions::default()
        },
        recompute: Recompute::Layers,
        ..options()
    };
    let mut first = trainer(on, with_layers(1), options());
    let mut second = trainer(on, with_layers(1), options());
    for trainer in [&mut first, &mut second] {
        step(trainer, &batches);
    }
    first.set_options(changed.clone()).expect("means something");
    second
        .set_learning_rate(changed.learning_rate)
        .expect("means something");
    second
        .set_optimizer(changed.optimizer)
        .expect("means something");
    // Which computes the same numbers.
    assert_eq!(second.options().recompute, Recompute::Insides);
    let reports = [&mut first, &mut second].map(|trainer| step(trainer, &batches));
    assert_eq!(reports[0], reports[1]);
    assert_eq!(reports[0].learning_rate, 5e-3);
    assert_eq!(bits(&weights(&first, on)), bits(&weights(&second, on)));
    // Without any change, weights are others.
    let mut same = trainer(on, with_layers(1), options());
    for _ in 0..2 {
        step(&mut same, &batches);
    }
    assert_ne!(bits(&weights(&first, on)), bits(&weights(&same, on)));
}

#[test]
fn a_refused_step_has_not_happened() {
    for (_, context) in contexts() {
        let mut trainer = trainer(&context, config(), options());
        let good = batch(0, 1, 20);
        step(&mut trainer, std::slice::from_ref(&good));
        let (before, leases) = (
            bits(&weights(&trainer, &context)),
            context.pool().stats().leases.current,
        );
        let shape = AttentionShape::new(1, 3).expect("valid");
        let tokens =
            Batch::new(shape.clone(), vec![1, VOCAB as u32, 2], vec![1; 3]).expect("a batch");
        let labels = Batch::new(shape.clone(), vec![1; 3], vec![0, 1, 77]).expect("a batch");
        let ignored = Batch::new(shape.clone(), vec![1; 3], vec![IGNORED_LABEL; 3]);
        let error = trainer.step(&[good.clone(), tokens]).expect_err("token");
        assert!(
            matches!(error, Error::TokenOutOfRange { what: "token", index: 1, given, limit }
                if (given as usize, limit) == (VOCAB, VOCAB)),
            "{error}"
        );
        let error = trainer.step(&[good.clone(), labels]).expect_err("label");
        assert!(
            matches!(
                error,
                Error::TokenOutOfRange {
                    what: "label",
                    index: 2,
                    given: 77,
                    ..
                }
            ),
            "{error}"
        );
        for (nothing, missing) in [
            (vec![], "number of batches"),
            (vec![ignored.expect("a batch")], "labels"),
        ] {
            let error = trainer.step(&nothing).expect_err("nothing to learn from");
            assert!(
                matches!(&error, Error::InvalidShape { what, .. } if *what == missing),
                "{error}"
            );
        }
        context.wait().expect("waits");
        assert_eq!(trainer.steps(), 1);
        assert_eq!(context.pool().stats().leases.current, leases);
        assert_eq!(bits(&weights(&trainer, &context)), before);
        assert_eq!(step(&mut trainer, &[good]).step, 2);

        let error = Batch::new(shape, vec![1; 4], vec![1; 3]).expect_err("length");
        assert!(matches!(
            error,
            Error::LengthMismatch {
                given: 4,
                expected: 3,
                ..
            }
        ));
        for wrong in [vec![], vec![&[1u32][..]], vec![&[1, 2][..], &[1, 2, 3]]] {
            let error = Batch::next_tokens(&wrong).expect_err("sequences");
            assert!(matches!(error, Error::InvalidShape { .. }), "{error}");
        }
    }
}

#[test]
fn gradients_that_are_not_finite_change_no_weight() {
    for (_, context) in contexts() {
        let mut trainer = trainer(&context, config(), options());
        let batches = [batch(0, 1, 20)];
        step(&mut trainer, &batches);
        let list = trainer.model().parameters().clone();
        let id = list.find("output_projection.weight").expect("exists");
        let mut recorder = context.recorder("spoil");
        let tensor = trainer.weights().get(id).clone();
        let values = vec![3e38f32; tensor.num_elements() as usize];
        recorder.write(&tensor, &values).expect("records");
        recorder.submit().expect("submits");
        let before = bits(&weights(&trainer, &context));
        let error = trainer
            .step(&batches)
            .expect("submits")
            .wait()
            .expect_err("told");
        let Error::NonFiniteStep {
            step: 2,
            gradient_norm: Some(norm),
            ..
        } = error
        else {
            panic!("{error}");
        };
        assert!(!norm.is_finite(), "{error}");
        assert!(
            error.to_string().contains("no weight has changed"),
            "{error}"
        );
        assert_eq!(bits(&weights(&trainer, &context)), before);
        assert_eq!(trainer.steps(), 2);
    }
}

/// Attention is changed as a whole, and its mask is not lost by that.
#[test]
fn a_decoder_stays_causal() {
    let full = DilatedAttentionConfig::new(2, 8, &[16], &[1]).expect("valid");
    assert_eq!(full.mask(), Mask::Full);
    let decoder = config().with_attention(full.clone());
    assert_eq!(decoder.attention(), &full.clone().with_mask(Mask::Causal));
    let encoder = LongNetConfig::encoder(full.clone(), 1, 16);
    assert_eq!(encoder.attention(), &full);
    let causal = encoder.with_attention(full.clone().with_mask(Mask::Causal));
    assert_eq!(causal.attention().mask(), Mask::Causal);
    let kept = causal.with_attention(full);
    assert_eq!(kept.attention().mask(), Mask::Causal);
    // Nor do residuals of one kind of norms stay with another.
    let pre_norm = config().with_deep_norm().with_pre_norm();
    assert_eq!((pre_norm.residual_scale, pre_norm.final_norm), (1.0, true));
}

#[test]
fn batches_without_tokens_are_errors() {
    let cross = AttentionShape::cross(1, 3, 4).expect("valid");
    for (shape, count) in [
        (AttentionShape::new(0, 5).expect("valid"), 0),
        (AttentionShape::new(3, 0).expect("valid"), 0),
        (AttentionShape::new(0, 0).expect("valid"), 0),
        (cross, 3),
    ] {
        let error = Batch::new(shape.clone(), vec![1; count], vec![1; count]).expect_err("nothing");
        assert!(matches!(error, Error::InvalidShape { .. }), "{error}");
        let caps = DeviceCaps::webgpu_defaults();
        let error = Trainer::plan(&config(), &[shape], &options(), caps).expect_err("nothing");
        assert!(matches!(error, Error::InvalidShape { .. }), "{error}");
    }
    // More than any machine holds.
    let endless = AttentionShape::new(u32::MAX as usize, 1 << 30).expect("valid");
    let caps = DeviceCaps::webgpu_defaults();
    let error = Trainer::plan(&config(), &[endless], &options(), caps).expect_err("too many");
    assert!(
        matches!(&error, Error::InvalidShape { what, .. } if what == "batch"),
        "{error}"
    );
    // Items of no tokens beside others are no batch without tokens.
    let shape = AttentionShape::new(2, 3).expect("valid");
    let shape = shape.with_valid_lens(&[0, 2]).expect("valid");
    let batch = Batch::new(shape, vec![1; 6], vec![1; 6]).expect("a batch");
    let ignored = IGNORED_LABEL;
    assert_eq!(batch.labels(), [ignored, ignored, ignored, 1, 1, ignored]);
}

#[test]
fn options_that_mean_nothing_are_refused() {
    let [(_, context), _] = contexts();
    let model = |config| LongNet::new(&context, config).expect("valid");
    let refused = |config, options| {
        let error = Trainer::new(&context, model(config), options).expect_err("refused");
        assert!(matches!(error, Error::InvalidConfig { .. }), "{error}");
    };
    let mut without_projection = config();
    without_projection.output_projection = OutputProjection::None;
    refused(without_projection, options());
    let peeking = config().attention().clone().with_mask(Mask::Full);
    let mut peeking = LongNetConfig::encoder(peeking, 2, 40);
    peeking.vocab_size = Some(VOCAB);
    peeking.output_projection = OutputProjection::Own;
    refused(peeking.clone(), options());
    let caps = context.caps().clone();
    let shapes = [AttentionShape::new(1, 20).expect("valid")];
    let error = Trainer::plan(&peeking, &shapes, &options(), caps).expect_err("refused");
    assert!(error.to_string().contains("causal"), "{error}");

    type Change = fn(&mut TrainingOptions);
    let with = |change: Change| {
        let mut options = options();
        change(&mut options);
        options
    };
    let wrong: [(Change, &str); 14] = [
        (
            |o| o.learning_rate = LearningRate::Constant(f32::NAN),
            "learning rate is NaN; it must be at least 0 and finite",
        ),
        (
            |o| {
                o.learning_rate = LearningRate::Cosine {
                    peak: 1e-3,
                    end: 1e-4,
                    warm_up: 100,
                    total: 20,
                };
            },
            "warm_up of the learning rate is 100 of 20 steps in all; it must be at most total",
        ),
        (
            |o| o.optimizer.beta_1 = 1.0,
            "beta_1 is 1; it must be at least 0 and below 1",
        ),
        (
            |o| o.optimizer.beta_1 = f32::NAN,
            "beta_1 is NaN; it must be at least 0 and below 1",
        ),
        (
            |o| o.optimizer.beta_2 = -0.1,
            "beta_2 is -0.1; it must be at least 0 and below 1",
        ),
        (
            |o| o.optimizer.eps = 0.0,
            "eps is 0; it must be positive and finite",
        ),
        (
            |o| o.optimizer.eps = f32::INFINITY,
            "eps is inf; it must be positive and finite",
        ),
        (
            |o| o.optimizer.weight_decay = -1.0,
            "weight_decay is -1; it must be at least 0 and finite",
        ),
        (
            |o| o.optimizer.weight_decay = f32::INFINITY,
            "weight_decay is inf; it must be at least 0 and finite",
        ),
        (
            |o| o.optimizer.weight_decay = f32::NAN,
            "weight_decay is NaN; it must be at least 0 and finite",
        ),
        (
            |o| o.optimizer.max_norm = Some(0.0),
            "max_norm is 0; it must be positive and finite, or none where nothing is clipped",
        ),
        (
            |o| o.optimizer.max_norm = Some(-2.0),
            "max_norm is -2; it must be positive and finite",
        ),
        (
            |o| o.optimizer.max_norm = Some(f32::INFINITY),
            "max_norm is inf; it must be positive and finite",
        ),
        (
            |o| o.optimizer.max_norm = Some(f32::NAN),
            "max_norm is NaN; it must be positive and finite",
        ),
    ];
    let leases = context.pool().stats().leases.current;
    for (change, told) in wrong {
        // When the trainer is made, not at its first step.
        let error = Trainer::new(&context, model(config()), with(change)).expect_err("refused");
        assert!(error.to_string().contains(told), "{error}");
    }
    let mut none = options();
    none.optimizer.max_norm = None;
    none.optimizer.weight_decay = 0.0;
    drop(Trainer::new(&context, model(config()), none).expect("means something"));
    context.wait().unwrap();
    assert_eq!(context.pool().stats().leases.current, leases);
    // An optimiser by itself has the same rules, and those of a step.
    let dry_run = Context::dry_run(DeviceCaps::webgpu_defaults());
    let mut recorder = dry_run.recorder("optimizer");
    let small = LongNet::new(&dry_run, config()).expect("valid");
    let weights = small.zero_gradients(&mut recorder).expect("leases");
    let optimizer = Optimizer::new(&mut recorder, weights).expect("leases");
    let good = AdamWOptions::default();
    let nan = AdamWOptions {
        weight_decay: f32::NAN,
        ..good
    };
    for (options, step, rate, scale, told) in [
        (nan, 1, 0.1, 1.0, "weight_decay"),
        (good, 0, 0.1, 1.0, "step"),
        (good, 1, f32::NAN, 1.0, "learning rate"),
        (good, 1, -0.1, 1.0, "learning rate"),
        (good, 1, 0.1, f32::INFINITY, "gradient_scale"),
    ] {
        let step = AdamWStep {
            options,
            learning_rate: rate,
            step,
            gradient_scale: scale,
        };
        let error = optimizer.update(&mut recorder, &step);
        let error = error.expect_err("means nothing");
        assert!(
            matches!(&error, Error::InvalidConfig { what, .. } if *what == told),
            "{error}"
        );
    }
    // Weights of another model.
    let mut other = config();
    other.ffn_dim += 4;
    let weights = model(other).initial_weights(&context, 1).expect("leases");
    let error = Trainer::from_weights(&context, model(config()), weights, options());
    assert!(matches!(
        error,
        Err(Error::ParameterMismatch { what: "weights" })
    ));
}
