//! The backward kernels against the f64 reference, on every context and with every kernel that the adapter runs.

use dilated_attention::ops::convert;
use dilated_attention::reference::{self, ReferenceGradients};
use dilated_attention::testing::{BackwardVariant, Family, ForwardFamily, Processor, plain};
use dilated_attention::{
    AttentionShape, CallOptions, DType, DilatedAttention, DilatedAttentionConfig, Error, Mask,
    MixGradient,
};
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};

use crate::forward::named_problems;
use crate::oracle::any_config;
use crate::support::kernel_contexts::{TestContext, kernel_contexts, short_parts, tiny_bindings};
use crate::support::problem::{Problem, roundoff};

pub const GRADIENTS: [MixGradient; 2] = [MixGradient::Exact, MixGradient::DetachedMix];

/// Gradients of queries, keys and values.
pub type Gradients32 = [Vec<f32>; 3];

pub fn run(
    problem: &Problem,
    on: &TestContext,
    variant: BackwardVariant,
) -> dilated_attention::Result<Gradients32> {
    let forward = ForwardFamily::of(&problem.config, variant.format)
        .choice(on.context.caps())
        .variant;
    let attention = DilatedAttention::new(&on.context, problem.config.clone())?
        .with_variant(forward)?
        .with_backward_variant(variant)?;
    let mut recorder = on.context.recorder("test");
    let [q, k, v] = problem.upload(&mut recorder)?;
    let dims = problem.dims(problem.shape.seq_len());
    let dout = problem.upload_one(&mut recorder, "dout", &dims, &problem.dout)?;
    let forward = attention.forward_with(
        &mut recorder,
        &q,
        &k,
        &v,
        &CallOptions::from(&problem.shape),
    )?;
    let gradients = attention.backward_with(
        &mut recorder,
        [&q, &k, &v],
        &forward.softmax_state,
        &dout,
        &CallOptions::from(&problem.shape),
    )?;
    let mut download = |tensor| {
        let wide = convert(&mut recorder, tensor, DType::F32)?;
        recorder.download::<f32>(&wide)
    };
    let dq = download(&gradients.dq)?;
    let dk = download(&gradients.dk)?;
    let dv = download(&gradients.dv)?;
    recorder.submit()?;
    Ok([dq.wait()?, dk.wait()?, dv.wait()?])
}

fn oracle(problem: &Problem) -> ReferenceGradients {
    let Problem {
        config,
        shape,
        q,
        k,
        v,
        dout,
        ..
    } = problem;
    reference::backward(config, shape, q, k, v, dout).unwrap()
}

/// Largest error of each gradient, and its largest value.
fn errors(given: &Gradients32, expected: &ReferenceGradients) -> Result<[(f64, f64); 3], String> {
    let mut errors = [(0.0, 0.0); 3];
    let expected = [&expected.dq, &expected.dk, &expected.dv];
    for (name, ((given, expected), error)) in ["dq", "dk", "dv"]
        .into_iter()
        .zip(given.iter().zip(expected).zip(&mut errors))
    {
        if given.len() != expected.len() {
            return Err(format!("{name} has {} values", given.len()));
        }
        for (index, (given, expected)) in given.iter().zip(expected).enumerate() {
            let off = (f64::from(*given) - expected).abs();
            if !off.is_finite() {
                return Err(format!("{name}[{index}] is {given}, expected {expected}"));
            }
            *error = (off.max(error.0), expected.abs().max(error.1));
        }
    }
    Ok(errors)
}

/// Runs `problem` with `variants` and compares each with the reference. Allowed are twice the error of plain single precision;
/// 1e-5 of the largest value, where that one was lucky; one rounding of the largest gradient's values, which is what remains
/// of a gradient whose terms cancel; in half precision one rounding more of the largest value; and for large scores two of their roundings, as relative errors of the shares: the
/// forward takes its sums in another order than the backward, while plain single precision has one order for both.
pub fn check_kernels(
    problem: &Problem,
    on: &TestContext,
    variants: &[BackwardVariant],
) -> Result<(), String> {
    let names = variants
        .iter()
        .map(|variant| format!("{variant}, {}", on.name));
    check_runs(problem, names.zip(variants), |variant| {
        run(problem, on, *variant)
    })
}

/// As [`check_kernels`], computed in several named ways.
pub fn check_runs<W>(
    problem: &Problem,
    ways: impl IntoIterator<Item = (String, W)>,
    run: impl Fn(W) -> dilated_attention::Result<Gradients32>,
) -> Result<(), String> {
    let expected = oracle(problem);
    let Problem {
        config,
        shape,
        q,
        k,
        v,
        dout,
        dtype,
    } = problem;
    let plain = plain::backward(config, shape, [q, k, v], dout, *dtype).unwrap();
    let allowed = errors(&plain, &expected)?;
    // Sums over branches are rounded as they grow; whether both implementations meet the same ties is luck.
    let rounded = match dtype {
        DType::F32 => 0.0,
        _ => roundoff(*dtype),
    };
    // The yardstick must itself be right, or it would allow anything.
    let largest_score = problem
        .q
        .iter()
        .fold(1.0, |max: f64, q| max.max(f64::from(q.abs())));
    let largest = allowed
        .iter()
        .fold(0.0, |largest: f64, (_, value)| largest.max(*value));
    for (error, _) in allowed {
        if error > (1e-5 * largest_score + 8.0 * rounded) * largest {
            return Err(format!("plain single precision is off by {allowed:?}"));
        }
    }
    let scores = problem.reference().softmax_lse;
    let covered = scores
        .iter()
        .filter(|lse| **lse != reference::UNCOVERED_LSE);
    let score = covered.fold(0.0, |max: f64, lse| max.max(lse.abs()));
    let rounding = (2.0 * f64::from(f32::EPSILON) * score).max(1e-5);
    for (name, way) in ways {
        let told = |reason: String| {
            format!(
                "{name}: {} ({:?}) on {:?}: {reason}",
                problem.config,
                problem.config.gradient(),
                problem.shape
            )
        };
        let given = run(way).map_err(|error| told(error.to_string()))?;
        let found = errors(&given, &expected).map_err(told)?;
        for ((error, value), (plain, _)) in found.iter().zip(&allowed) {
            let allowed_error = (2.0 * plain).max(rounding * value).max(1e-7 * largest);
            if *error > allowed_error + rounded * value {
                return Err(told(format!(
                    "errors {found:?}, those of plain {dtype} {allowed:?}"
                )));
            }
        }
    }
    Ok(())
}

fn check(problem: &Problem, on: &TestContext) -> Result<(), String> {
    check_kernels(
        problem,
        on,
        &on.backward_variants(problem.config.head_dim()),
    )
}

pub fn with_gradient(problem: &Problem, gradient: MixGradient) -> Problem {
    Problem {
        config: problem.config.clone().with_gradient(gradient),
        ..problem.clone()
    }
}

fn shape(batch: usize, seq_len: usize) -> AttentionShape {
    AttentionShape::new(batch, seq_len).unwrap()
}

fn config(heads: usize, segments: &[usize], rates: &[usize]) -> DilatedAttentionConfig {
    DilatedAttentionConfig::new(heads, 8, segments, rates).unwrap()
}

#[test]
fn named_cases_equal_the_reference() {
    for on in kernel_contexts() {
        for (name, problem) in named_problems() {
            for gradient in GRADIENTS {
                check(&with_gradient(&problem, gradient), on)
                    .unwrap_or_else(|reason| panic!("{name}: {reason}"));
            }
        }
    }
}

/// Tensors in many buffers: a border passes through every segment, and between the heads of many rows.
#[test]
fn parts_equal_the_reference() {
    for (name, problem) in named_problems() {
        for gradient in GRADIENTS {
            check(&with_gradient(&problem, gradient), short_parts())
                .unwrap_or_else(|reason| panic!("{name}: {reason}"));
        }
    }
    let dense = DilatedAttentionConfig::dense(3, 8).unwrap();
    let cross = AttentionShape::cross(1, 50, 90).unwrap();
    check(&Problem::new(dense, cross, 1.0), short_parts()).unwrap();
}

#[test]
fn windows_equal_the_reference() {
    for (name, problem) in named_problems() {
        for gradient in GRADIENTS {
            check(&with_gradient(&problem, gradient), tiny_bindings())
                .unwrap_or_else(|reason| panic!("{name}: {reason}"));
        }
    }
    for mask in [Mask::Full, Mask::Causal] {
        for rates in [&[1, 5], &[2, 3]] {
            for gradient in GRADIENTS {
                let config = config(3, &[400, 900], rates)
                    .with_mask(mask)
                    .with_gradient(gradient);
                let moved = config.clone().with_torchscale().with_gradient(gradient);
                for config in [config, moved] {
                    let problem = Problem::new(config, shape(1, 1000), 1.0);
                    check(&problem, tiny_bindings()).unwrap();
                }
            }
        }
    }
    let dense = DilatedAttentionConfig::dense(3, 8).unwrap();
    let cross = AttentionShape::cross(1, 500, 900).unwrap();
    check(&Problem::new(dense, cross, 1.0), tiny_bindings()).unwrap();
}

/// Head sizes that differ in how they fill the vectors, chunks and register blocks of the kernels. As for the forward, a
/// software adapter runs few of them with every kernel, or at all.
#[test]
fn every_head_size_equals_the_reference() {
    for (index, on) in kernel_contexts().iter().enumerate() {
        let compiles_fast = on.context.caps().processor() == Processor::Gpu;
        for head_dim in [4, 8, 12, 24, 48, 64, 96, 128, 256] {
            let mut variants = on.backward_variants(head_dim);
            if !compiles_fast && ![8, 12, 64].contains(&head_dim) {
                let at_every_size = index == 0 && !on.compiles_slowly();
                variants.truncate(usize::from(at_every_size));
            }
            let config = DilatedAttentionConfig::new(2, head_dim, &[32, 70], &[1, 2]).unwrap();
            for config in [
                config.clone().with_mask(Mask::Causal),
                config.with_torchscale(),
            ] {
                let problem = Problem::new(config, shape(1, 75), 1.0);
                check_kernels(&problem, on, &variants).unwrap();
            }
        }
    }
}

#[test]
fn drawn_configurations_equal_the_reference() {
    let lens = proptest::collection::vec(0..=60usize, 1..4);
    for on in kernel_contexts()
        .iter()
        .chain([tiny_bindings(), short_parts()])
    {
        let mut runner = TestRunner::new_with_rng(
            ProptestConfig {
                cases: 30,
                failure_persistence: None,
                ..Default::default()
            },
            // The same cases in every run: what fails here fails again.
            TestRng::deterministic_rng(RngAlgorithm::ChaCha),
        );
        let cases = (any_config(), lens.clone(), any::<bool>());
        let drawn = runner.run(&cases, |(config, lens, exact)| {
            let longest = lens.iter().copied().max().unwrap_or(0);
            let shape = shape(lens.len(), longest).with_valid_lens(&lens).unwrap();
            let problem = Problem::new(
                config.with_gradient(GRADIENTS[usize::from(exact)]),
                shape,
                1.0,
            );
            check(&problem, on).map_err(TestCaseError::fail)
        });
        drawn.unwrap();
    }
}

#[test]
fn runs_are_equal_bit_for_bit() {
    for on in kernel_contexts()
        .iter()
        .chain([tiny_bindings(), short_parts()])
    {
        let config = config(4, &[64, 200, 200], &[1, 2, 2]).with_torchscale();
        for gradient in GRADIENTS {
            let problem = Problem::new(config.clone().with_gradient(gradient), shape(2, 300), 1.0);
            for variant in on.backward_variants(8) {
                let first = run(&problem, on, variant).unwrap();
                for _ in 0..3 {
                    assert_eq!(first, run(&problem, on, variant).unwrap(), "{variant}");
                }
            }
        }
    }
}

/// Under the causal mask, the gradient of a query depends on no later token, and that of a key on no earlier one's loss.
#[test]
fn values_that_are_no_numbers_stay_with_rows_that_see_them() {
    for on in kernel_contexts() {
        let config = config(3, &[10, 70], &[1, 3]).with_mask(Mask::Causal);
        for gradient in GRADIENTS {
            let problem = Problem::new(config.clone().with_gradient(gradient), shape(1, 93), 1.0);
            for variant in on.backward_variants(8) {
                check_that_values_stay_with_rows_that_see_them(&problem, on, variant);
            }
        }
    }
}

/// The same of one kernel, under the causal mask, for 93 tokens and 3 heads of 8 elements.
pub fn check_that_values_stay_with_rows_that_see_them(
    problem: &Problem,
    on: &TestContext,
    variant: BackwardVariant,
) {
    let before = run(problem, on, variant).unwrap();
    for token in [0, 31, 33, 69, 92] {
        let mut poisoned = problem.clone();
        poisoned.k[token * 24..][..24].fill(f32::NAN);
        poisoned.v[token * 24..][..24].fill(f32::NAN);
        let after = run(&poisoned, on, variant).unwrap();
        assert_eq!(before[0][..token * 24], after[0][..token * 24], "{variant}");
        assert!(
            after[0][token * 24..][..24]
                .iter()
                .all(|value| value.is_nan())
        );
        let mut poisoned = problem.clone();
        poisoned.dout[token * 24..][..24].fill(f32::NAN);
        let after = run(&poisoned, on, variant).unwrap();
        for gradient in [1, 2] {
            let later = (token + 1) * 24..;
            assert_eq!(before[gradient][later.clone()], after[gradient][later]);
        }
    }
}

#[test]
fn wrong_inputs_are_errors() {
    let on = &kernel_contexts()[0];
    let config = config(2, &[16], &[1]);
    let problem = Problem::new(config.clone(), shape(1, 20), 1.0);
    let attention = DilatedAttention::new(&on.context, config.clone()).unwrap();
    let mut recorder = on.context.recorder("test");
    let [q, k, v] = problem.upload(&mut recorder).unwrap();
    let forward = attention
        .forward_with(
            &mut recorder,
            &q,
            &k,
            &v,
            &CallOptions::from(&problem.shape),
        )
        .unwrap();
    let short = recorder.zeros("dout", &[1, 19, 2, 8], q.dtype()).unwrap();
    let result = attention.backward_with(
        &mut recorder,
        [&q, &k, &v],
        &forward.softmax_state,
        &short,
        &CallOptions::from(&problem.shape),
    );
    assert!(matches!(
        result,
        Err(Error::InvalidShape { what, .. }) if what == "dout"
    ));
    let cross = AttentionShape::cross(1, 20, 30).unwrap();
    let result = config.plan_backward(&cross, DType::F32, on.context.caps());
    assert!(
        matches!(result, Err(Error::InvalidConfig { .. })),
        "{result:?}"
    );
    assert!(
        AttentionShape::new(1, 5)
            .unwrap()
            .with_valid_key_lens(&[5])
            .is_err()
    );
    assert!(
        AttentionShape::cross(1, 5, 6)
            .unwrap()
            .with_valid_key_lens(&[7])
            .is_err()
    );
}
