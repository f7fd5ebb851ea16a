//! The reference against other forms of the same formulas: one softmax over the union of all keys, and runs of single items.

use super::*;
use crate::config::{
    AttentionShape, DilatedAttentionConfig, HeadOffsets, Heads, Mask, MixGradient, OutputRows,
    Padding,
};

/// Numbers in -2..2 from a linear congruential generator, which make all rows different.
fn numbers(count: usize, seed: u64) -> Vec<f64> {
    let mut state = seed;
    (0..count)
        .map(|_| {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 40) as f64 / (1 << 22) as f64 - 2.0
        })
        .collect()
}

struct Case {
    config: DilatedAttentionConfig,
    shape: AttentionShape,
    q: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
}

impl Case {
    fn new(config: DilatedAttentionConfig, batch: usize, seq_len: usize) -> Self {
        let count = batch * seq_len * config.embed_dim();
        Self {
            shape: AttentionShape::new(batch, seq_len).unwrap(),
            q: numbers(count, 1),
            k: numbers(count, 2),
            v: numbers(count, 3),
            config,
        }
    }

    fn run(&self) -> ReferenceOutput {
        forward(&self.config, &self.shape, &self.q, &self.k, &self.v).unwrap()
    }
}

fn worst(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(b)
        .fold(0.0, |worst, (a, b)| f64::max(worst, (a - b).abs()))
}

const OFFSETS: [HeadOffsets; 2] = [HeadOffsets::Blocked, HeadOffsets::RoundRobin];
const MASKS: [Mask; 2] = [Mask::Full, Mask::Causal];

/// Aligned rows: for each row, how often each key is seen over all branches follows from positions alone, and the
/// result is one softmax over that multiset (plus zero keys), with no notion of a branch's own softmax.
#[test]
fn one_softmax_over_the_union_of_all_keys() {
    let (heads, head_dim, n) = (3usize, 4usize, 37usize);
    let branches = [(5, 1), (8, 3), (16, 2), (16, 2), (100, 5)];
    let lists: (Vec<usize>, Vec<usize>) = branches.into_iter().unzip();
    for (mask, offsets) in MASKS.into_iter().flat_map(|m| OFFSETS.map(|o| (m, o))) {
        for padding in [Padding::Masked, Padding::ZeroKeys] {
            let config = DilatedAttentionConfig::new(heads, head_dim, &lists.0, &lists.1)
                .unwrap()
                .with_mask(mask)
                .with_head_offsets(offsets)
                .with_padding(padding);
            let case = Case::new(config, 1, n);
            let result = case.run();
            for (head, i) in (0..heads).flat_map(|h| (0..n).map(move |i| (h, i))) {
                let row = |tensor: &[f64], token: usize| {
                    let begin = (token * heads + head) * head_dim;
                    tensor[begin..begin + head_dim].to_vec()
                };
                let (mut times, mut zero_keys) = (vec![0u32; n], 0u32);
                for &(w, r) in &branches {
                    let (w, r) = (w.min(n), r);
                    let offset = match offsets {
                        HeadOffsets::Blocked => head / heads.div_ceil(r),
                        HeadOffsets::RoundRobin => head % r,
                    };
                    if (i % w) % r != offset {
                        continue;
                    }
                    let mut seen = 0;
                    let segment = i / w * w..(i / w * w + w).min(n);
                    for (j, times) in segment.clone().zip(&mut times[segment]) {
                        if (j % w) % r == offset && (mask == Mask::Full || j <= i) {
                            *times += 1;
                            seen += 1;
                        }
                    }
                    if padding == Padding::ZeroKeys && mask == Mask::Full {
                        zero_keys += (w.div_ceil(r) - seen) as u32;
                    }
                }
                let (mut sum, mut out) = (f64::from(zero_keys), vec![0.0; head_dim]);
                for (j, times) in times.iter().enumerate() {
                    let (q, k) = (row(&case.q, i), row(&case.k, j));
                    let dot: f64 = q.iter().zip(k).map(|(q, k)| q * k).sum();
                    // Scores stay below 8, so nothing overflows without taking the maximum out.
                    let score = dot * f64::from(case.config.softmax_scale());
                    let share = f64::from(*times) * score.exp();
                    sum += share;
                    out.iter_mut()
                        .zip(row(&case.v, j))
                        .for_each(|(out, v)| *out += share * v);
                }
                let lse = result.softmax_lse[i * heads + head];
                if sum == 0.0 {
                    assert_eq!(lse, UNCOVERED_LSE);
                    assert_eq!(row(&result.out, i), vec![0.0; head_dim]);
                } else {
                    assert!((lse - sum.ln()).abs() < 1e-13);
                    out.iter_mut().for_each(|out| *out /= sum);
                    assert!(worst(&out, &row(&result.out, i)) < 1e-13);
                }
            }
        }
    }
}

/// Every combination of options: a ragged batch equals separate runs, and rows behind the length are uncovered.
#[test]
fn valid_lengths_equal_separate_runs() {
    for bits in 0..32u32 {
        let choose = |bit: u32| bits >> bit & 1 == 1;
        let config = DilatedAttentionConfig::new(5, 4, &[6, 10, 64], &[4, 3, 2])
            .unwrap()
            .with_mask(MASKS[usize::from(choose(0))])
            .with_head_offsets(OFFSETS[usize::from(choose(1))])
            .with_padding([Padding::Masked, Padding::ZeroKeys][usize::from(choose(2))])
            .with_output_rows([OutputRows::Aligned, OutputRows::Torchscale][usize::from(choose(3))])
            .with_heads([Heads::EveryBranch, Heads::Partitioned][usize::from(choose(4))]);
        let lens = [0, 1, 9, 10, 23, 30];
        let mut case = Case::new(config, lens.len(), 30);
        case.shape = case.shape.with_valid_lens(&lens).unwrap();
        let result = case.run();
        let (width, heads) = (20, 5);
        for (item, len) in lens.into_iter().enumerate() {
            let part = |tensor: &[f64]| tensor[item * 30 * width..][..len * width].to_vec();
            let alone = forward(
                &case.config,
                &AttentionShape::new(1, len).unwrap(),
                &part(&case.q),
                &part(&case.k),
                &part(&case.v),
            )
            .unwrap();
            let (out, lse) = (
                &result.out[item * 30 * width..][..30 * width],
                &result.softmax_lse[item * 30 * heads..][..30 * heads],
            );
            assert_eq!(alone.out, out[..len * width]);
            assert_eq!(alone.softmax_lse, lse[..len * heads]);
            assert!(out[len * width..].iter().all(|value| *value == 0.0));
            assert!(
                lse[len * heads..]
                    .iter()
                    .all(|value| *value == UNCOVERED_LSE)
            );
        }
    }
}

#[test]
fn causal_rows_ignore_later_tokens() {
    let config = DilatedAttentionConfig::new(4, 4, &[8, 12, 64], &[1, 2, 4])
        .unwrap()
        .with_mask(Mask::Causal);
    let mut case = Case::new(config, 1, 29);
    let before = case.run();
    let changed = 17;
    for value in &mut case.k[changed * 16..] {
        *value = f64::NAN;
    }
    for value in &mut case.v[changed * 16..] {
        *value = f64::INFINITY;
    }
    let after = case.run();
    assert_eq!(before.out[..changed * 16], after.out[..changed * 16]);
    assert_eq!(
        before.softmax_lse[..changed * 4],
        after.softmax_lse[..changed * 4]
    );
    assert!(after.out[changed * 16].is_nan());
}

/// Torchscale's output rows, worked out by hand. Segments of two tokens and rate 4 leave one row in each segment, written four
/// tokens apart. Padding is written too, with a query of zeros.
#[test]
fn torchscale_moves_rows_and_writes_padding() {
    let config = DilatedAttentionConfig::new(4, 4, &[2], &[4])
        .unwrap()
        .with_output_rows(OutputRows::Torchscale);
    let case = Case::new(config.clone(), 1, 6);
    let lse = |result: &ReferenceOutput| {
        let written = result.softmax_lse.chunks(4);
        written
            .map(|row| row.iter().map(|lse| *lse != UNCOVERED_LSE).collect())
            .collect::<Vec<Vec<bool>>>()
    };
    // Offsets 2 and 3 lie outside a segment: without zero keys their rows see nothing.
    let (written, none) = (vec![true, false, false, false], vec![false; 4]);
    let second = vec![false, true, false, false];
    let masked = case.run();
    assert_eq!(
        lse(&masked),
        [&written, &second, &none, &none, &written, &second].map(Clone::clone)
    );
    // Each sees one key, its own token: head 0 of segment 1 is token 2, written to token 4.
    assert!(worst(&masked.out[4 * 16..][..4], &case.v[2 * 16..][..4]) < 1e-15);

    let zero_keys = Case {
        config: config.with_padding(Padding::ZeroKeys),
        ..case
    }
    .run();
    let heads = |head: usize| (0..4).map(|h| h == head).collect::<Vec<_>>();
    assert_eq!(lse(&zero_keys), [0, 1, 2, 3, 0, 1].map(heads));
    // Head 2 of segment 0 sees one zero key: score 0, so the logarithm is exactly 0, and the row is covered.
    assert_eq!(zero_keys.softmax_lse[2 * 4 + 2], 0.0);
    assert_eq!(zero_keys.out[2 * 16 + 8..][..4], [0.0; 4]);
}

#[test]
fn partitioned_heads_see_their_branch_alone() {
    let both = DilatedAttentionConfig::new(5, 4, &[4, 12], &[1, 2]).unwrap();
    let case = Case::new(both.clone().with_heads(Heads::Partitioned), 2, 12);
    let result = case.run();
    let first = DilatedAttentionConfig::new(5, 4, &[4], &[1]).unwrap();
    let dense = Case::new(first, 2, 12).run();
    for (row, out) in result.out.chunks(20).enumerate() {
        let doubled: Vec<f64> = out[..12].iter().map(|value| 2.0 * value).collect();
        assert!(worst(&doubled, &dense.out[row * 20..][..12]) < 1e-14);
        // Heads 3 and 4 sit at offset 1 of rate 2.
        assert_eq!(out[12..].iter().all(|value| *value == 0.0), row % 2 == 0);
    }
    let branch = forward_branch(&case.config, &case.shape, &case.q, &case.k, &case.v, 0).unwrap();
    for (row, lse) in branch.softmax_lse.chunks(5).enumerate() {
        assert_eq!(lse[..3], result.softmax_lse[row * 5..][..3]);
        assert_eq!(lse[3..], [UNCOVERED_LSE; 2]);
    }
}

#[test]
fn rows_equal_those_of_the_whole() {
    let config = DilatedAttentionConfig::new(3, 4, &[5, 16], &[2, 3])
        .unwrap()
        .with_torchscale();
    let case = Case::new(config, 2, 21);
    let (whole, rows) = (case.run(), [(1, 20), (0, 0), (1, 7), (1, 7), (0, 13)]);
    let some = forward_rows(&case.config, &case.shape, &case.q, &case.k, &case.v, &rows).unwrap();
    for (index, (item, token)) in rows.into_iter().enumerate() {
        let row = item * 21 + token;
        assert_eq!(some.out[index * 12..][..12], whole.out[row * 12..][..12]);
        assert_eq!(
            some.softmax_lse[index * 3..][..3],
            whole.softmax_lse[row * 3..][..3]
        );
    }
}

/// Even if scores are so large that `ln(sum)` is lost in `softmax_lse`, the weights are right.
#[test]
fn huge_equal_scores_share_their_weight() {
    let config = DilatedAttentionConfig::new(1, 4, &[2, 2], &[1, 1]).unwrap();
    let shape = AttentionShape::new(1, 2).unwrap();
    let large = [1e15; 8];
    let v = [1.0, 1.0, 1.0, 1.0, 3.0, 3.0, 3.0, 3.0];
    let result = forward(&config, &shape, &large, &large, &v).unwrap();
    assert_eq!(result.out, [2.0; 8]);
}

#[test]
fn wrong_inputs_are_errors() {
    use crate::error::Error;
    let config = DilatedAttentionConfig::new(1, 4, &[2], &[1]).unwrap();
    let shape = AttentionShape::new(1, 2).unwrap();
    let (right, short) = ([0.0; 8], [0.0; 7]);
    assert_eq!(
        forward(&config, &shape, &right, &short, &right),
        Err(Error::LengthMismatch {
            label: "k".into(),
            given: 7,
            expected: 8
        })
    );
    let outside = forward_rows(&config, &shape, &right, &right, &right, &[(0, 2)]);
    assert!(matches!(
        outside,
        Err(Error::InvalidShape { what, .. }) if what == "row"
    ));
    let branch = forward_branch(&config, &shape, &right, &right, &right, 1);
    assert!(matches!(
        branch,
        Err(Error::InvalidShape { what, .. }) if what == "branch"
    ));
    let nothing = AttentionShape::new(0, 5).unwrap();
    let result = forward::<f64>(&config, &nothing, &[], &[], &[]).unwrap();
    assert!(result.out.is_empty());
}

/// Gradients of `sum(out * dout)` by central differences. With detached mixing weights, `out` is the sum of the outputs of the
/// branches, each times its mixing weight at the undisturbed point.
fn finite_differences(case: &Case, dout: &[f64]) -> ReferenceGradients {
    let branches = case.config.branches().len();
    let run = |inputs: &[Vec<f64>; 3], branch: usize| {
        let [q, k, v] = inputs;
        forward_branch(&case.config, &case.shape, q, k, v, branch).unwrap()
    };
    let at = [case.q.clone(), case.k.clone(), case.v.clone()];
    let head_dim = case.config.head_dim();
    // ln of the share of each branch in each row.
    let total = case.run().softmax_lse;
    let shares: Vec<Vec<f64>> = (0..branches)
        .map(|branch| {
            let lse = run(&at, branch).softmax_lse;
            lse.iter()
                .zip(&total)
                .map(|(part, whole)| (part - whole).exp())
                .collect()
        })
        .collect();
    let divisor = match case.config.heads() {
        Heads::EveryBranch => 1.0,
        Heads::Partitioned => branches as f64,
    };
    let value = |inputs: &[Vec<f64>; 3]| -> f64 {
        let weighted = |out: &[f64]| out.iter().zip(dout).map(|(out, dout)| out * dout).sum();
        match case.config.gradient() {
            MixGradient::Exact => {
                let [q, k, v] = inputs;
                weighted(&forward(&case.config, &case.shape, q, k, v).unwrap().out)
            }
            MixGradient::DetachedMix => (0..branches)
                .map(|branch| {
                    let mut out = run(inputs, branch).out;
                    for (row, share) in out.chunks_mut(head_dim).zip(&shares[branch]) {
                        row.iter_mut().for_each(|value| *value *= share / divisor);
                    }
                    weighted(&out)
                })
                .sum(),
        }
    };
    let gradient = |which: usize| -> Vec<f64> {
        (0..at[which].len())
            .map(|index| {
                let step = 1e-5;
                let moved = |by: f64| {
                    let mut inputs = at.clone();
                    inputs[which][index] += by;
                    value(&inputs)
                };
                (moved(step) - moved(-step)) / (2.0 * step)
            })
            .collect()
    };
    ReferenceGradients {
        dq: gradient(0),
        dk: gradient(1),
        dv: gradient(2),
    }
}

#[test]
fn gradients_are_those_of_finite_differences() {
    let base = |segments: &[usize], rates: &[usize]| {
        DilatedAttentionConfig::new(3, 4, segments, rates).unwrap()
    };
    let several = base(&[4, 6, 16], &[1, 2, 3]);
    let moved = base(&[5, 10], &[2, 3]);
    let shape = |n| AttentionShape::new(1, n).unwrap();
    let cases = [
        (several.clone(), shape(11)),
        (several.clone().with_mask(Mask::Causal), shape(11)),
        (several.clone().with_padding(Padding::ZeroKeys), shape(11)),
        (
            several.clone().with_head_offsets(HeadOffsets::RoundRobin),
            shape(11),
        ),
        (several.clone().with_heads(Heads::Partitioned), shape(11)),
        (
            several.with_torchscale(),
            AttentionShape::new(2, 9)
                .unwrap()
                .with_valid_lens(&[9, 5])
                .unwrap(),
        ),
        (moved.clone().with_torchscale(), shape(13)),
        (moved.with_mask(Mask::Causal).with_torchscale(), shape(13)),
        (
            DilatedAttentionConfig::dense(2, 4).unwrap(),
            AttentionShape::cross(1, 3, 7).unwrap(),
        ),
    ];
    for ((config, shape), gradient) in cases
        .into_iter()
        .flat_map(|case| [MixGradient::Exact, MixGradient::DetachedMix].map(|g| (case.clone(), g)))
    {
        let config = config.with_gradient(gradient);
        let width = config.embed_dim();
        let count = shape.batch() * shape.seq_len() * width;
        let keys = shape.batch() * shape.key_len() * width;
        let case = Case {
            q: numbers(count, 1),
            k: numbers(keys, 2),
            v: numbers(keys, 3),
            config,
            shape,
        };
        let dout = numbers(count, 4);
        let given = backward(&case.config, &case.shape, &case.q, &case.k, &case.v, &dout).unwrap();
        let expected = finite_differences(&case, &dout);
        for (given, expected) in [
            (&given.dq, &expected.dq),
            (&given.dk, &expected.dk),
            (&given.dv, &expected.dv),
        ] {
            let error = worst(given, expected);
            assert!(error < 1e-7, "{}: {error}", case.config);
        }
        assert!(given.dv.iter().any(|value| value.abs() > 0.1));
    }
}

/// Plain single precision agrees with the reference up to rounding wherever f32 can hold the scores: for scores far below those of
/// zero keys, far above them, and for rows that see only zero keys.
#[test]
fn plain_single_precision_is_right_at_any_offset() {
    use super::plain;
    use crate::device::DType;
    let branch = DilatedAttentionConfig::new(1, 4, &[2], &[1]).unwrap();
    let moved = DilatedAttentionConfig::new(1, 4, &[5, 10], &[2, 3]).unwrap();
    for config in [
        branch.clone(),
        branch.with_torchscale(),
        moved.with_torchscale(),
    ] {
        for gradient in [MixGradient::Exact, MixGradient::DetachedMix] {
            let config = config.clone().with_gradient(gradient);
            for offset in [-3e4, -50.0, 0.0, 50.0, 3e4] {
                let shape = AttentionShape::new(1, 13).unwrap();
                let single = |seed| -> Vec<f32> {
                    let values = numbers(13 * 4, seed).into_iter();
                    values.map(|value| value as f32).collect()
                };
                let (q, v, dout) = (vec![1.0; 13 * 4], single(3), single(4));
                let k = vec![offset; 13 * 4];
                let exact = forward(&config, &shape, &q, &k, &v).unwrap();
                let inputs = [&q[..], &k, &v];
                let plain_forward =
                    plain::forward(&config, &shape, inputs, DType::F32, None).unwrap();
                let near = |given: &[f32], exact: &[f64], bound: f64| {
                    for (given, exact) in given.iter().zip(exact) {
                        let error = match *exact == UNCOVERED_LSE {
                            true => f64::from(given - UNCOVERED_LSE as f32).abs(),
                            false => (f64::from(*given) - exact).abs(),
                        };
                        assert!(error <= bound, "offset {offset}: {given}, not {exact}");
                    }
                };
                near(&plain_forward.out, &exact.out, 1e-6);
                let lse = f64::from(2.0 * offset.abs() + 1.0);
                near(&plain_forward.softmax_lse, &exact.softmax_lse, 1e-6 * lse);
                let exact = backward(&config, &shape, &q, &k, &v, &dout).unwrap();
                let [dq, dk, dv] =
                    plain::backward(&config, &shape, inputs, &dout, DType::F32).unwrap();
                near(&dq, &exact.dq, 2e-6 * lse);
                near(&dk, &exact.dk, 2e-6);
                near(&dv, &exact.dv, 2e-6);
            }
        }
    }
}
