//! Dilated attention in plain single precision, with tensors stored in f32 or in half precision. It shows how large the rounding
//! errors of a straightforward implementation are, and so which tolerance is fair for a kernel. Whether a result is right is
//! decided by the [f64 reference](super::forward).
//!
//! The softmax of a row takes two passes over all keys that it sees in any branch: the first finds the largest score, the second
//! sums the exponentials relative to it. Sums are in order, in f32. There are no running sums and no merges of partial results, and
//! the backward computes the row anew. So an error that kernels make by running sums and merges shows in the comparison.
//!
//! The output of each branch is rounded to the stored type before branches are mixed, and so is the mixed output. The same holds
//! for the gradients of each branch and their sums. A framework that stores the results of its operations in half precision does
//! the same.

use std::ops::Range;

use super::forward::{Problem, all_rows, check_len};
use super::sparse::{Key, SparseBranch};
use crate::attention::UNCOVERED_LSE;
use crate::config::{AttentionShape, DilatedAttentionConfig, Heads, MixGradient};
use crate::device::DType;
use crate::error::Result;

/// Output and log-sum-exp of some rows in single precision.
#[derive(Clone, Debug, PartialEq)]
pub struct PlainOutput {
    /// The attention output, (row, head, element), rounded to the stored type; 0 where uncovered.
    pub out: Vec<f32>,
    /// Log-sum-exp of the scores, (row, head); [`UNCOVERED_LSE`] where uncovered.
    pub softmax_lse: Vec<f32>,
}

/// `values` rounded to the nearest numbers of `dtype`. For f32 and integer types they stay as they are.
pub fn rounded(dtype: DType, values: &[f32]) -> Vec<f32> {
    values.iter().map(|value| round(dtype, *value)).collect()
}

/// [`rounded`] for f64 values.
pub(super) fn rounded_wide(dtype: DType, values: Vec<f64>) -> Vec<f64> {
    match dtype {
        DType::F32 | DType::U32 => values,
        DType::F16 | DType::Bf16 => {
            let values = values.into_iter();
            values
                .map(|value| round(dtype, value as f32).into())
                .collect()
        }
    }
}

fn round(dtype: DType, value: f32) -> f32 {
    match dtype {
        DType::F32 | DType::U32 => value,
        DType::F16 => half::f16::from_f32(value).to_f32(),
        DType::Bf16 => half::bf16::from_f32(value).to_f32(),
    }
}

/// Dilated attention of `q`, `k` and `v`, whose values are numbers of `dtype`, for the given rows `(item, token)`, or for all rows
/// if none are given.
///
/// # Errors
/// [`Error::LengthMismatch`](crate::Error::LengthMismatch) when an input does not have the elements of its shape.
pub fn forward(
    config: &DilatedAttentionConfig,
    shape: &AttentionShape,
    [q, k, v]: [&[f32]; 3],
    dtype: DType,
    rows: Option<&[(usize, usize)]>,
) -> Result<PlainOutput> {
    let problem = Problem::new(config, shape, q, k, v)?;
    let all = all_rows(shape);
    let rows = rows.unwrap_or(&all);
    let (heads, head_dim) = (config.num_heads(), config.head_dim());
    let mut result = PlainOutput {
        out: vec![0.0; rows.len() * heads * head_dim],
        softmax_lse: vec![UNCOVERED_LSE; rows.len() * heads],
    };
    let divisor = divisor(config);
    let mut places = result.out.chunks_mut(head_dim).zip(&mut result.softmax_lse);
    let mut branches = Vec::new();
    let mut branches_of = None;
    for &(item, token) in rows {
        let valid = token < shape.valid_len(item);
        if valid && branches_of != Some(item) {
            branches = problem.sparse(0..config.branches().len(), item);
            branches_of = Some(item);
        }
        for (head, (out, lse)) in (0..heads).zip(places.by_ref()) {
            if !valid {
                continue;
            }
            let row = Row::of(&problem, &branches, (item, token), head);
            if row.branches.is_empty() {
                continue;
            }
            for seen in &row.branches {
                let Some(branch_out) = seen.mean(v, head_dim) else {
                    continue;
                };
                for (out, branch_out) in out.iter_mut().zip(branch_out) {
                    *out += seen.sum() / row.sum * round(dtype, branch_out / divisor);
                }
            }
            out.iter_mut().for_each(|out| *out = round(dtype, *out));
            *lse = row.max + row.sum.ln();
        }
    }
    Ok(result)
}

/// The gradients of `q`, `k` and `v`, where `dout` is the gradient of the output.
///
/// # Errors
/// As [`forward`].
pub fn backward(
    config: &DilatedAttentionConfig,
    shape: &AttentionShape,
    [q, k, v]: [&[f32]; 3],
    dout: &[f32],
    dtype: DType,
) -> Result<[Vec<f32>; 3]> {
    let problem = Problem::new(config, shape, q, k, v)?;
    let dims = [shape.batch(), shape.seq_len(), config.embed_dim()];
    check_len("dout", dout.len(), dims)?;
    let heads = config.num_heads();
    let scale = config.softmax_scale();
    let divisor = divisor(config);
    let zeros = || [q, k, v].map(|tensor| vec![0f32; tensor.len()]);
    let mut of_branches: Vec<[Vec<f32>; 3]> = config.branches().iter().map(|_| zeros()).collect();
    for item in (0..shape.batch()).filter(|item| shape.valid_len(*item) > 0) {
        let branches = problem.sparse(0..config.branches().len(), item);
        let tokens = (0..shape.valid_len(item)).flat_map(|t| (0..heads).map(move |h| (t, h)));
        for (token, head) in tokens {
            let row = Row::of(&problem, &branches, (item, token), head);
            let dout = &dout[problem.query_range(item, token as u64, head)];
            // For each branch, the weights of its keys in the row's softmax, and dout . v.
            let pairs: Vec<(Vec<f32>, Vec<f32>)> = row
                .branches
                .iter()
                .map(|seen| {
                    let shares = seen.weights.iter().map(|weight| weight / row.sum);
                    let values = seen.keys.iter().map(|key| &v[key.clone()]);
                    let dps = values.map(|value| dot(dout, value) / divisor);
                    (shares.collect(), dps.collect())
                })
                .collect();
            let total: f32 = pairs.iter().map(|(shares, dps)| dot(shares, dps)).sum();
            for (seen, (shares, dps)) in row.branches.iter().zip(&pairs) {
                let mean = match config.gradient() {
                    MixGradient::Exact => total,
                    MixGradient::DetachedMix => {
                        let weight = shares.iter().sum::<f32>() + seen.zero_weight / row.sum;
                        dot(shares, dps) / weight.max(f32::MIN_POSITIVE)
                    }
                };
                let [dq, dk, dv] = &mut of_branches[seen.branch];
                for ((key, share), dp) in seen.keys.iter().zip(shares).zip(dps) {
                    let ds = scale * share * (dp - mean);
                    add(&mut dv[key.clone()], share / divisor, dout);
                    if let Some(query) = &seen.query {
                        add(&mut dk[key.clone()], ds, &q[query.clone()]);
                        add(&mut dq[query.clone()], ds, &k[key.clone()]);
                    }
                }
            }
        }
    }
    let mut sums = zeros();
    for of_branch in of_branches {
        for (sum, of_branch) in sums.iter_mut().zip(of_branch) {
            for (sum, of_branch) in sum.iter_mut().zip(of_branch) {
                *sum = round(dtype, *sum + round(dtype, of_branch));
            }
        }
    }
    Ok(sums)
}

/// The softmax of one row and head over the keys that it sees in all branches.
struct Row {
    /// The branches in which the row sees a key.
    branches: Vec<Seen>,
    /// Largest score, zero keys included.
    max: f32,
    /// Sum of all weights.
    sum: f32,
}

impl Row {
    fn of(
        problem: &Problem<'_, f32>,
        branches: &[SparseBranch],
        place: (usize, usize),
        head: usize,
    ) -> Self {
        let numbered = branches.iter().enumerate();
        let mut branches: Vec<Seen> = numbered
            .filter_map(|(number, branch)| Seen::of(problem, (number, branch), place, head))
            .collect();
        let maxima = branches.iter().map(Seen::highest);
        let max = maxima.fold(f32::NEG_INFINITY, f32::max);
        branches.iter_mut().for_each(|seen| seen.weigh(max));
        let sum = branches.iter().map(Seen::sum).sum();
        Self { branches, max, sum }
    }
}

/// The keys that one row of one branch sees.
struct Seen {
    /// Number of the branch.
    branch: usize,
    /// Elements of the row's query; `None` if the query is padding.
    query: Option<Range<usize>>,
    /// Elements of each key.
    keys: Vec<Range<usize>>,
    /// Scores of the keys; later their exponentials relative to the largest score of the row.
    weights: Vec<f32>,
    zero_keys: f32,
    /// The weight of all zero keys together.
    zero_weight: f32,
}

impl Seen {
    /// The row that a branch writes to a token, with scores instead of weights; `None` if it sees no key.
    fn of(
        problem: &Problem<'_, f32>,
        (number, branch): (usize, &SparseBranch),
        (item, token): (usize, usize),
        head: usize,
    ) -> Option<Self> {
        let row = branch.row_written_to(head, token as u64)?;
        let query = branch.query_token(&row);
        let query = query.map(|query| problem.query_range(item, query, head));
        let mut keys = Vec::new();
        let mut zero_keys = 0.0;
        for key in branch.keys(&row) {
            match key {
                Key::Token(token) => keys.push(problem.key_range(item, token, head)),
                Key::Zero => zero_keys += 1.0,
            }
        }
        if keys.is_empty() && zero_keys == 0.0 {
            return None;
        }
        let scale = problem.config.softmax_scale();
        let score = |key: &Range<usize>| match &query {
            Some(query) => scale * dot(&problem.q[query.clone()], &problem.k[key.clone()]),
            None => 0.0,
        };
        Some(Self {
            branch: number,
            weights: keys.iter().map(score).collect(),
            query,
            keys,
            zero_keys,
            zero_weight: 0.0,
        })
    }

    /// Largest score; the score of zero keys is 0.
    fn highest(&self) -> f32 {
        let lowest = match self.zero_keys {
            0.0 => f32::NEG_INFINITY,
            _ => 0.0,
        };
        self.weights.iter().copied().fold(lowest, f32::max)
    }

    /// Turns scores into weights.
    fn weigh(&mut self, max: f32) {
        for weight in &mut self.weights {
            *weight = (*weight - max).exp();
        }
        if self.zero_keys > 0.0 {
            self.zero_weight = self.zero_keys * (-max).exp();
        }
    }

    /// Sum of the weights.
    fn sum(&self) -> f32 {
        self.weights.iter().sum::<f32>() + self.zero_weight
    }

    /// The weighted mean of the values; `None` if all weights are 0.
    fn mean(&self, v: &[f32], head_dim: usize) -> Option<Vec<f32>> {
        let sum = self.sum();
        let mut mean = vec![0.0; head_dim];
        for (key, weight) in self.keys.iter().zip(&self.weights) {
            add(&mut mean, *weight, &v[key.clone()]);
        }
        mean.iter_mut().for_each(|value| *value /= sum);
        (sum != 0.0).then_some(mean)
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(sum: &mut [f32], factor: f32, vector: &[f32]) {
    for (sum, value) in sum.iter_mut().zip(vector) {
        *sum += factor * value;
    }
}

fn divisor(config: &DilatedAttentionConfig) -> f32 {
    match config.heads() {
        Heads::EveryBranch => 1.0,
        Heads::Partitioned => config.branches().len() as f32,
    }
}
