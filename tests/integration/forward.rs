//! The forward kernels against the f64 reference, on every context and with every kernel that the adapter runs.

use dilated_attention::testing::{ForwardVariant, Processor};
use dilated_attention::{
    AttentionShape, DType, DilatedAttentionConfig, HeadOffsets, Heads, Mask, OutputRows, Padding,
};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use crate::oracle::any_config;
use crate::support::kernel_contexts::{TestContext, kernel_contexts, short_parts, tiny_bindings};
use crate::support::problem::Problem;

/// A configuration of `heads` heads of 8 elements.
fn config(heads: usize, segments: &[usize], rates: &[usize]) -> DilatedAttentionConfig {
    DilatedAttentionConfig::new(heads, 8, segments, rates).unwrap()
}

fn shape(batch: usize, seq_len: usize) -> AttentionShape {
    AttentionShape::new(batch, seq_len).unwrap()
}

/// What is special in a configuration or shape, each with the name of what it is about. Head size 8 throughout: a
/// kernel is compiled once for all of them.
pub fn named_problems() -> Vec<(&'static str, Problem)> {
    let long = config(4, &[16, 32, 64], &[1, 2, 4]);
    let ragged = [0, 1, 15, 16, 17, 50, 0];
    let cases = [
        ("segments that fit", long.clone(), shape(1, 64)),
        (
            "length no multiple of the segments",
            long.clone(),
            shape(1, 50),
        ),
        (
            "many tiles of rows and keys",
            config(2, &[150, 700], &[1, 3]),
            shape(1, 700),
        ),
        (
            "segment no multiple of the rate",
            config(4, &[10, 15], &[4, 2]),
            shape(1, 40),
        ),
        (
            "heads no multiple of the rate",
            config(5, &[16, 32], &[1, 4]),
            shape(1, 45),
        ),
        (
            "fewer heads than offsets",
            config(2, &[16, 32], &[1, 8]),
            shape(1, 40),
        ),
        ("one token", long.clone(), shape(2, 1)),
        ("shorter than every segment", long.clone(), shape(1, 13)),
        (
            "segments far beyond 32 bits' half",
            config(2, &[usize::MAX, 3 << 30], &[1, 3]),
            shape(1, 21),
        ),
        (
            "rate beyond the length",
            config(2, &[64], &[100]),
            shape(1, 20),
        ),
        (
            "no branch of rate 1",
            config(4, &[16, 32], &[2, 4]),
            shape(1, 50),
        ),
        (
            "repeated branch",
            config(2, &[16, 16, 32], &[1, 1, 2]),
            shape(1, 40),
        ),
        ("batch", long.clone(), shape(3, 37)),
        (
            "lengths per item",
            long.clone(),
            shape(7, 50).with_valid_lens(&ragged).unwrap(),
        ),
        (
            "lengths per item, no rate 1",
            config(3, &[16, 32], &[2, 4]),
            shape(7, 50).with_valid_lens(&ragged).unwrap(),
        ),
        ("no token", long.clone(), shape(3, 0)),
        ("no item", long.clone(), shape(0, 20)),
        (
            "round-robin offsets",
            config(5, &[16, 32], &[2, 3]).with_head_offsets(HeadOffsets::RoundRobin),
            shape(1, 45),
        ),
        (
            "partitioned heads",
            config(5, &[16, 32], &[1, 2]).with_heads(Heads::Partitioned),
            shape(2, 50),
        ),
        (
            "fewer heads than groups",
            config(2, &[8, 16, 32], &[1, 2, 4]).with_heads(Heads::Partitioned),
            shape(1, 50),
        ),
        (
            "zero keys",
            long.clone().with_padding(Padding::ZeroKeys),
            shape(1, 50),
        ),
        ("torchscale", long.clone().with_torchscale(), shape(2, 50)),
        (
            "torchscale, rows that move",
            config(4, &[10, 40], &[4, 1]).with_torchscale(),
            shape(1, 40),
        ),
        (
            "torchscale, only padding in rows",
            config(6, &[3, 5], &[4, 6]).with_torchscale(),
            shape(1, 43),
        ),
        (
            "torchscale, lengths per item",
            config(4, &[10, 15], &[4, 2]).with_torchscale(),
            shape(7, 50).with_valid_lens(&ragged).unwrap(),
        ),
        (
            "moved rows, padding masked",
            config(4, &[10, 15], &[4, 2]).with_output_rows(OutputRows::Torchscale),
            shape(1, 50),
        ),
        (
            "zero keys, rows in place",
            config(4, &[10, 15], &[4, 2]).with_padding(Padding::ZeroKeys),
            shape(1, 50),
        ),
        (
            "scale",
            long.clone().with_softmax_scale(-1.7).unwrap(),
            shape(1, 50),
        ),
        (
            "scale of 0",
            long.clone().with_softmax_scale(0.0).unwrap(),
            shape(1, 50),
        ),
    ];
    let mut problems: Vec<_> = cases
        .into_iter()
        .flat_map(|(name, config, shape)| {
            [Mask::Full, Mask::Causal].map(|mask| {
                (
                    name,
                    Problem::new(config.clone().with_mask(mask), shape.clone(), 1.0),
                )
            })
        })
        .collect();
    let dense = DilatedAttentionConfig::dense(3, 8).unwrap();
    for (seq_len, key_len) in [(20, 75), (75, 20), (1, 40), (40, 0)] {
        let shape = AttentionShape::cross(2, seq_len, key_len).unwrap();
        let problem = Problem::new(dense.clone(), shape, 1.0);
        problems.push(("two sequences", problem));
    }
    let shape_of_two = AttentionShape::cross(4, 30, 50)
        .and_then(|shape| shape.with_valid_lens(&[30, 10, 0, 7]))
        .and_then(|shape| shape.with_valid_key_lens(&[50, 0, 50, 33]))
        .unwrap();
    problems.push((
        "two sequences with lengths per item",
        Problem::new(dense, shape_of_two, 1.0),
    ));
    for query_scale in [100.0, 3e4] {
        let problem = Problem::new(long.clone().with_torchscale(), shape(1, 50), query_scale);
        problems.push(("large scores", problem));
    }
    problems
}

#[test]
fn named_cases_equal_the_reference() {
    for on in kernel_contexts() {
        for (name, problem) in named_problems() {
            problem
                .check(on)
                .unwrap_or_else(|reason| panic!("{name}: {reason}"));
        }
    }
}

/// Tensors in many buffers: a border passes through every segment, and between the heads of many rows.
#[test]
fn parts_equal_the_reference() {
    for (name, problem) in named_problems() {
        problem
            .check(short_parts())
            .unwrap_or_else(|reason| panic!("{name}: {reason}"));
    }
}

#[test]
fn windows_equal_the_reference() {
    for (name, problem) in named_problems() {
        problem
            .check(tiny_bindings())
            .unwrap_or_else(|reason| panic!("{name}: {reason}"));
    }
    // Segments that exceed a binding, so that key windows are merged; heads of different offsets in windows of their own.
    for mask in [Mask::Full, Mask::Causal] {
        for rates in [&[1, 5], &[2, 3], &[1, 600]] {
            let config = config(3, &[400, 900], rates).with_mask(mask);
            for config in [config.clone(), config.with_torchscale()] {
                let problem = Problem::new(config, shape(1, 1000), 1.0);
                problem.check(tiny_bindings()).unwrap();
            }
        }
    }
}

/// Head sizes that differ in how they fill the vectors, chunks and register blocks of the kernels.
const FEW_HEAD_DIMS: [usize; 5] = [8, 12, 48, 64, 132];

/// A software adapter takes 2 to 100 seconds to compile a kernel the first time. There, the kernel that the adapter would
/// choose runs at every size, or at few if it compiles slowly; the others, and all with the adapter's own limits, at few: the code
/// is the same.
#[test]
fn every_head_size_equals_the_reference() {
    for (index, on) in kernel_contexts().iter().enumerate() {
        let compiles_fast = on.context.caps().processor() == Processor::Gpu;
        for head_dim in [4, 8, 12, 16, 24, 32, 48, 64, 80, 96, 128, 132, 256] {
            let mut variants = on.forward_variants(head_dim);
            if !compiles_fast && !FEW_HEAD_DIMS.contains(&head_dim) {
                let at_every_size = index == 0 && !on.compiles_slowly();
                variants.truncate(usize::from(at_every_size));
            }
            let config = DilatedAttentionConfig::new(2, head_dim, &[32, 70], &[1, 2]).unwrap();
            for config in [
                config.clone().with_mask(Mask::Causal),
                config.with_torchscale(),
            ] {
                let problem = Problem::new(config, shape(1, 75), 1.0);
                problem.check_kernels(on, &variants).unwrap();
            }
        }
    }
}

#[test]
fn grids_wider_than_the_device_allows_are_folded() {
    let on = tiny_bindings();
    let limit = on.context.caps().max_workgroups_per_dimension();
    // One workgroup a segment; one head of 4 elements, so that a window covers them all.
    let config = DilatedAttentionConfig::new(1, 4, &[2], &[1]).unwrap();
    let shape = shape(1, 900);
    let plan = config
        .plan_forward(&shape, DType::F32, on.context.caps())
        .unwrap();
    assert!(plan.dispatches()[0].num_workgroups > limit && plan.dispatches()[0].grid[1] > 1);
    Problem::new(config, shape, 1.0).check(on).unwrap();
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
                cases: 40,
                failure_persistence: None,
                ..Default::default()
            },
            // The same cases in every run: what fails here fails again.
            proptest::test_runner::TestRng::deterministic_rng(
                proptest::test_runner::RngAlgorithm::ChaCha,
            ),
        );
        let drawn = runner.run(&(any_config(), lens.clone()), |(config, lens)| {
            let longest = lens.iter().copied().max().unwrap_or(0);
            let shape = shape(lens.len(), longest).with_valid_lens(&lens).unwrap();
            let problem = Problem::new(config, shape, 1.0);
            problem.check(on).map_err(TestCaseError::fail)
        });
        drawn.unwrap();
    }
}

#[test]
fn causal_rows_ignore_later_tokens() {
    for on in kernel_contexts() {
        let config = config(4, &[32, 48, 256], &[1, 2, 4]).with_mask(Mask::Causal);
        let problem = Problem::new(config, shape(1, 150), 1.0);
        for variant in on.forward_variants(8) {
            let before = problem.run(on, variant).unwrap();
            for token in [0, 1, 31, 32, 33, 80, 149] {
                let mut changed = problem.clone();
                // So large that the scores of later rows outgrow all before them: an earlier row must not even be rounded
                // otherwise.
                for tensor in [&mut changed.q, &mut changed.k, &mut changed.v] {
                    for value in &mut tensor[token * 32..] {
                        *value = 50.0 * (0.5 - *value);
                    }
                }
                let after = changed.run(on, variant).unwrap();
                assert_eq!(
                    before.out[..token * 32],
                    after.out[..token * 32],
                    "{variant}"
                );
                assert_eq!(
                    before.softmax_lse[..token * 4],
                    after.softmax_lse[..token * 4]
                );
                assert_ne!(before.out[token * 32..], after.out[token * 32..]);
            }
        }
    }
}

/// A value that is no number changes no bit of a row that does not see it. Which rows see it, the reference knows.
#[test]
fn values_that_are_no_numbers_stay_with_rows_that_see_them() {
    for on in kernel_contexts() {
        let base = config(3, &[10, 70], &[1, 3]);
        for config in [
            base.clone(),
            base.clone().with_mask(Mask::Causal),
            base.clone().with_torchscale(),
            base.with_torchscale().with_mask(Mask::Causal),
        ] {
            let problem = Problem::new(config, shape(2, 93), 1.0);
            for variant in on.forward_variants(8) {
                check_that_values_stay_with_rows_that_see_them(&problem, on, variant);
            }
        }
    }
}

/// The same of one kernel, for 2 items of 93 tokens and 3 heads of 8 elements.
pub fn check_that_values_stay_with_rows_that_see_them(
    problem: &Problem,
    on: &TestContext,
    variant: ForwardVariant,
) {
    let before = problem.run(on, variant).unwrap();
    for (tensor, value, token) in [
        (0, f32::NAN, 92),
        (1, f32::NAN, 0),
        (1, f32::NAN, 92),
        (1, f32::INFINITY, 69),
        (1, f32::NEG_INFINITY, 70),
        (2, f32::NAN, 45),
        (2, f32::INFINITY, 93 + 9),
        (0, f32::INFINITY, 93 + 10),
    ] {
        let mut poisoned = problem.clone();
        let mut marked = problem.clone();
        for (problem, value) in [(&mut poisoned, value), (&mut marked, f32::NAN)] {
            [&mut problem.q, &mut problem.k, &mut problem.v][tensor][token * 24..][..24]
                .fill(value);
        }
        let seen = marked.reference();
        let after = poisoned.run(on, variant).unwrap();
        let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        for row in 0..before.softmax_lse.len() {
            let elements = row * 8..(row + 1) * 8;
            let sees = seen.softmax_lse[row].is_nan()
                || seen.out[elements.clone()]
                    .iter()
                    .any(|value| value.is_nan());
            if !sees {
                assert_eq!(
                    bits(&before.out[elements.clone()]),
                    bits(&after.out[elements]),
                    "{variant}, {}: row {row}, {value} in tensor {tensor} at {token}",
                    problem.config
                );
                assert_eq!(before.softmax_lse[row], after.softmax_lse[row]);
            }
        }
    }
}

#[test]
fn runs_are_equal_bit_for_bit() {
    for on in kernel_contexts()
        .iter()
        .chain([tiny_bindings(), short_parts()])
    {
        let config = config(4, &[64, 200, 200], &[1, 2, 2]).with_torchscale();
        let problem = Problem::new(config, shape(2, 300), 1.0);
        for variant in on.forward_variants(8) {
            let first = problem.run(on, variant).unwrap();
            for _ in 0..3 {
                assert_eq!(first, problem.run(on, variant).unwrap(), "{variant}");
            }
        }
    }
}
