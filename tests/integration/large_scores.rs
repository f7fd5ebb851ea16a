//! Scores that share a large part, as those of trained models do, or are large themselves: every kernel against the f64
//! reference, allowed twice the error of a plain implementation in two passes, whatever the offset.
//!
//! How a large score is rounded depends on the order in which its products are added, which a compiler of a driver chooses.
//! So the plain implementation is the worst of those that add the elements of a head in other orders: one alone may be lucky.
//!
//! A part that all scores of a row share changes nothing of the result, but it takes digits of every score, and what the
//! gradient of a query sums up nearly cancels: keys of 1000, times weights that add up to 0 only if each row's softmax does.

use dilated_attention::testing::{
    BackwardFamily, BackwardVariant, ElementFormat, Family, ForwardFamily, ForwardVariant, plain,
};
use dilated_attention::{
    AttentionShape, DType, DilatedAttentionConfig, Mask, MixGradient, reference,
};

use crate::backward;
use crate::support::kernel_contexts::{
    TestContext, default_limits, kernel_contexts, tiny_bindings,
};
use crate::support::problem::{Problem, roundoff};

const OFFSETS: [f32; 4] = [0.0, 50.0, 200.0, 1000.0];

/// Output, log-sum-exp, dq, dk, dv.
const NAMES: [&str; 5] = ["out", "lse", "dq", "dk", "dv"];

/// Inputs in -1..1, but the first element of keys is `offset`, and that of queries is such that scores have it in common.
fn with_offset(config: DilatedAttentionConfig, shape: AttentionShape, offset: f32) -> Problem {
    let head_dim = config.head_dim();
    let query = 1.0 / config.softmax_scale();
    let mut problem = Problem::new(config, shape, 1.0);
    problem
        .q
        .iter_mut()
        .step_by(head_dim)
        .for_each(|q| *q = query);
    problem
        .k
        .iter_mut()
        .step_by(head_dim)
        .for_each(|k| *k = offset);
    problem
}

/// The same with one key per 32 that outweighs all others, in a part of the queries.
fn peaked(mut problem: Problem) -> Problem {
    let head_dim = problem.config.head_dim();
    for (token, key) in problem.k.chunks_mut(head_dim).enumerate() {
        key[1] = if token % 32 == 3 { 30.0 } else { 0.0 };
    }
    for (token, query) in problem.q.chunks_mut(head_dim).enumerate() {
        query[1] = if token % 3 == 0 { 1.0 } else { 0.125 };
    }
    problem
}

/// The same with keys far from their mean, in an element that scores do not depend on, and with two groups of scores.
fn spread(mut problem: Problem, offset: f32) -> Problem {
    let head_dim = problem.config.head_dim();
    for (token, key) in problem.k.chunks_mut(head_dim).enumerate() {
        key[0] -= if token % 2 == 0 { 4.0 } else { 0.0 };
        key[1] = if token % 4 < 2 { offset } else { -offset };
    }
    problem
        .q
        .chunks_mut(head_dim)
        .for_each(|query| query[1] = 0.0);
    problem
}

/// Largest errors of all results as parts of their largest values.
type Relative = [f64; 5];

fn relative(given: [&[f32]; 5], exact: &[Vec<f64>; 5]) -> Result<Relative, String> {
    let mut errors = [0.0; 5];
    for (index, (given, exact)) in given.iter().zip(exact).enumerate() {
        assert_eq!(given.len(), exact.len());
        let covered = |value: &&f64| **value != reference::UNCOVERED_LSE;
        let largest = exact.iter().filter(covered);
        let largest = largest.fold(0.0, |max: f64, value| max.max(value.abs()));
        let pairs = given.iter().zip(exact);
        for (given, exact) in pairs.filter(|(_, exact)| covered(exact)) {
            let error = (f64::from(*given) - exact).abs() / largest.max(f64::MIN_POSITIVE);
            if !error.is_finite() {
                return Err(format!("{} has {given} for {exact}", NAMES[index]));
            }
            errors[index] = error.max(errors[index]);
        }
    }
    Ok(errors)
}

/// `values` with the elements of each head moved on by `by`, the last ones to the front: the same scores, added in another order.
fn rotated<T: Copy>(values: &[T], head_dim: usize, by: usize) -> Vec<T> {
    let mut values = values.to_vec();
    for head in values.chunks_mut(head_dim) {
        head.rotate_right(by);
    }
    values
}

/// The exact results, and the largest errors of plain two-pass arithmetic of the problem's type, in eight orders.
fn yardstick(problem: &Problem) -> ([Vec<f64>; 5], Relative) {
    let Problem {
        config,
        shape,
        q,
        k,
        v,
        dout,
        dtype,
    } = problem;
    let forward = problem.reference();
    let gradients = reference::backward(config, shape, q, k, v, dout).unwrap();
    let exact = [
        forward.out,
        forward.softmax_lse,
        gradients.dq,
        gradients.dk,
        gradients.dv,
    ];
    let head_dim = config.head_dim();
    let mut errors = Relative::default();
    for by in (0..head_dim).step_by(head_dim / 8) {
        let [q, k, v, dout] = [q, k, v, dout].map(|values| rotated(values, head_dim, by));
        let inputs = [&q[..], &k, &v];
        let plain_forward = plain::forward(config, shape, inputs, *dtype, None).unwrap();
        let [dq, dk, dv] = plain::backward(config, shape, inputs, &dout, *dtype).unwrap();
        let back = |values: &[f32]| rotated(values, head_dim, head_dim - by);
        let [out, dq, dk, dv] = [&plain_forward.out, &dq, &dk, &dv].map(|values| back(values));
        let given = [&out[..], &plain_forward.softmax_lse, &dq, &dk, &dv];
        let of_order = relative(given, &exact).unwrap();
        for (error, of_order) in errors.iter_mut().zip(of_order) {
            *error = error.max(of_order);
        }
    }
    (exact, errors)
}

fn run(
    problem: &Problem,
    on: &TestContext,
    (forward, backward): (ForwardVariant, BackwardVariant),
    exact: &[Vec<f64>; 5],
) -> Result<Relative, String> {
    let output = problem.run(on, forward).unwrap();
    let [dq, dk, dv] = backward::run(problem, on, backward).unwrap();
    relative([&output.out, &output.softmax_lse, &dq, &dk, &dv], exact)
}

/// Pairs of a forward kernel and backward kernels: every one of them is in a pair.
fn variants(
    on: &TestContext,
    head_dim: usize,
    format: ElementFormat,
) -> Vec<(ForwardVariant, BackwardVariant)> {
    let forwards = on.forward_variants(head_dim);
    let backwards = on.backward_variants(head_dim);
    let pairs = 0..forwards.len().max(backwards.len());
    pairs
        .map(|i| {
            let forward = forwards[i.min(forwards.len() - 1)];
            let backward = backwards[i.min(backwards.len() - 1)];
            (
                ForwardVariant { format, ..forward },
                BackwardVariant { format, ..backward },
            )
        })
        .collect()
}

/// Twice the error of plain arithmetic. Where that one was lucky (few terms, or terms that are exact): sixteen roundings of the
/// largest value in f32, for sums in other orders and an exponential of another library; in half precision, one to the stored type.
fn allowed(plain: f64, dtype: DType) -> f64 {
    let lucky = match dtype {
        DType::F32 => 8.0 * f64::from(f32::EPSILON),
        _ => roundoff(dtype),
    };
    (2.0 * plain).max(lucky)
}

fn check(
    name: &str,
    problem: &Problem,
    on: &TestContext,
    kernels: &[(ForwardVariant, BackwardVariant)],
) -> Vec<String> {
    let (exact, plain) = yardstick(problem);
    let mut failures = Vec::new();
    for &kernel in kernels {
        let told = format!(
            "{name}, {:?}, {} branches, {}, {}, {}, {}",
            problem.config.mask(),
            problem.config.branches().len(),
            problem.dtype,
            on.name,
            kernel.0,
            kernel.1
        );
        match run(problem, on, kernel, &exact) {
            Err(reason) => failures.push(format!("{told}: {reason}")),
            Ok(errors) => {
                let shown = |errors: Relative| {
                    let parts = NAMES.iter().zip(errors);
                    let parts = parts.map(|(name, error)| format!("{name} {error:.1e}"));
                    parts.collect::<Vec<_>>().join(", ")
                };
                println!("{told}: {}; plain {}", shown(errors), shown(plain));
                for ((name, error), plain) in NAMES.iter().zip(errors).zip(plain) {
                    if error > allowed(plain, problem.dtype) {
                        failures.push(format!("{told}: {name} {error:.1e}, plain {plain:.1e}"));
                    }
                }
            }
        }
    }
    failures
}

fn shape(seq_len: usize) -> AttentionShape {
    AttentionShape::new(1, seq_len).unwrap()
}

fn config(segments: &[usize], rates: &[usize]) -> DilatedAttentionConfig {
    DilatedAttentionConfig::new(1, 8, segments, rates).unwrap()
}

/// One row of eight keys, of which the first element is 1000.
#[test]
fn a_few_keys_of_a_thousand() {
    let config = config(&[8], &[1]).with_softmax_scale(1.0).unwrap();
    let problem = with_offset(config, shape(8), 1000.0);
    let mut failures = Vec::new();
    for on in kernel_contexts() {
        let kernels = variants(on, 8, ElementFormat::F32);
        failures.extend(check("8 tokens", &problem, on, &kernels));
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn offsets_take_no_more_digits_than_two_passes_do() {
    let on = &kernel_contexts()[1];
    let kernels = variants(on, 8, ElementFormat::F32);
    let mut failures = Vec::new();
    for offset in OFFSETS {
        for config in [
            config(&[128], &[1]),
            config(&[32, 64, 128], &[1, 2, 4]).with_torchscale(),
        ] {
            for mask in [Mask::Full, Mask::Causal] {
                let config = config
                    .clone()
                    .with_mask(mask)
                    .with_gradient(MixGradient::Exact);
                let problem = with_offset(config, shape(125), offset);
                let name = format!("offset {offset}");
                failures.extend(check(&name, &problem, on, &kernels));
            }
        }
        let problem = with_offset(config(&[128], &[1]), shape(125), offset);
        failures.extend(check(
            &format!("peaked, offset {offset}"),
            &peaked(problem.clone()),
            on,
            &kernels,
        ));
        failures.extend(check(
            &format!("spread, offset {offset}"),
            &spread(problem, offset),
            on,
            &kernels,
        ));
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// As real heads have it, with the kernels that the adapter chooses.
#[test]
fn offsets_of_wide_heads() {
    let on = &kernel_contexts()[0];
    let mut failures = Vec::new();
    for offset in OFFSETS {
        let config = DilatedAttentionConfig::new(1, 32, &[128], &[1]).unwrap();
        let problem = with_offset(config, shape(128), offset);
        let kernels = &variants(on, 32, ElementFormat::F32)[..1];
        failures.extend(check(
            &format!("heads of 32, offset {offset}"),
            &problem,
            on,
            kernels,
        ));
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn offsets_in_half_precision() {
    let on = &kernel_contexts()[0];
    let mut failures = Vec::new();
    for format in [ElementFormat::F16Packed, ElementFormat::Bf16Packed] {
        let kernels = variants(on, 8, format);
        for offset in OFFSETS {
            for config in [config(&[128], &[1]), config(&[32, 64, 128], &[1, 2, 4])] {
                let config = config.with_gradient(MixGradient::Exact);
                let problem = with_offset(config, shape(125), offset).stored(format.dtype());
                let name = format!("offset {offset}");
                failures.extend(check(&name, &problem, on, &kernels[..1]));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn offsets_with_cooperative_matrices() {
    let on = default_limits();
    let _ = pollster::block_on(on.context.test_cooperative_matrices());
    let caps = on.context.caps();
    let (Ok(forward), Ok(backward)) = (
        ForwardFamily::of_long_segments(8, ElementFormat::F16).cooperative(caps),
        BackwardFamily::of_long_segments(8, ElementFormat::F16).cooperative(caps),
    ) else {
        return;
    };
    let mut failures = Vec::new();
    for offset in OFFSETS {
        for config in [config(&[128], &[1]), config(&[32, 64, 128], &[1, 2, 4])] {
            let config = config.with_gradient(MixGradient::Exact);
            let problem = with_offset(config, shape(125), offset).stored(DType::F16);
            let name = format!("offset {offset}");
            failures.extend(check(&name, &problem, on, &[(forward, backward)]));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Windows of keys, of which each binding covers one, joined one after the other.
#[test]
fn offsets_in_many_windows_of_keys() {
    let on = tiny_bindings();
    let kernels = &variants(on, 8, ElementFormat::F32)[..1];
    let mut failures = Vec::new();
    for windows in [1, 16, 256] {
        // One binding covers 504 tokens.
        let shape = AttentionShape::cross(1, 16, 504 * windows).unwrap();
        let dense = DilatedAttentionConfig::dense(1, 8).unwrap();
        let plan = dense
            .plan_forward(&shape, DType::F32, on.context.caps())
            .unwrap();
        assert_eq!(plan.num_dispatches(), windows);
        for offset in [0.0, 200.0, 1000.0] {
            let problem = with_offset(dense.clone(), shape.clone(), offset);
            let name = format!("{windows} windows of keys, offset {offset}");
            failures.extend(check(&name, &problem, on, kernels));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Large scores of either sign, rows that see nothing but zero keys, and rows of one key.
#[test]
fn scores_of_any_size() {
    let mut failures = Vec::new();
    for on in [&kernel_contexts()[0], tiny_bindings()] {
        let kernels = variants(on, 8, ElementFormat::F32);
        for offset in [-1000.0, -1e5, 1e5, 3e8, -3e8] {
            for config in [
                config(&[32, 64], &[1, 2]),
                config(&[10, 15], &[4, 2]).with_torchscale(),
            ] {
                let config = config.with_gradient(MixGradient::Exact);
                let problem = with_offset(config, shape(50), offset);
                failures.extend(check(&format!("offset {offset:e}"), &problem, on, &kernels));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
