//! Dilated attention in plain single precision, with tensors stored in f32 or in half precision: how large the rounding
//! errors of an honest implementation are.
//!
//! It takes sums in order, in f32. The output of each branch is rounded to the stored type before branches are mixed by their
//! log-sum-exps, and the mixed output again; so are the gradients of each branch and their sums: what a framework does that
//! keeps the results of its operations in half precision. The [f64 reference](super::forward) decides what is right; this
//! only decides how precise is precise enough.

use std::ops::Range;

use super::forward::{Problem, all_rows, check_len};
use super::sparse::{Key, SparseBranch};
use crate::config::{AttentionShape, DilatedAttentionConfig, Heads, MixGradient};
use crate::error::Result;
use crate::plan::UNCOVERED_LSE;
use crate::tensor::DType;

/// Output and log-sum-exp of some rows in single precision, the output rounded to the stored type.
#[derive(Clone, Debug, PartialEq)]
pub struct PlainOutput {
    /// (row, head, element); 0 where uncovered.
    pub out: Vec<f32>,
    /// (row, head); [`UNCOVERED_LSE`] where uncovered.
    pub softmax_lse: Vec<f32>,
}

/// `values` rounded to the nearest numbers that `dtype` has; as they are for types that are not of floats.
pub fn rounded(dtype: DType, values: &[f32]) -> Vec<f32> {
    values.iter().map(|value| round(dtype, *value)).collect()
}

/// The same in double precision.
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

/// The attention of `q`, `k`, `v`, numbers that `dtype` has, for the rows `(item, token)`; for all where there are none.
///
/// # Errors
/// [`Error::LengthMismatch`](crate::Error::LengthMismatch) when an input does not have the elements of its shape.
pub fn forward(
    config: &DilatedAttentionConfig,
    shape: &AttentionShape,
    [q, k, v]: [&[f32]; 3],
    dtype: DType,
    rows: Option<&[(u32, u32)]>,
) -> Result<PlainOutput> {
    let problem = Problem::new(config, shape, q, k, v)?;
    let all = all_rows(shape);
    let rows = rows.unwrap_or(&all);
    let (heads, head_dim) = (config.num_heads() as usize, config.head_dim() as usize);
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
            for branch in branches.iter().filter(|_| valid) {
                let Some(seen) = Seen::of(&problem, branch, (item, token), head) else {
                    continue;
                };
                let (branch_out, branch_lse) = seen.attend(v, head_dim);
                let max = lse.max(branch_lse);
                let (old, new) = ((*lse - max).exp(), (branch_lse - max).exp());
                for (out, branch_out) in out.iter_mut().zip(branch_out) {
                    let branch_out = round(dtype, branch_out / divisor);
                    *out = (old * *out + new * branch_out) / (old + new);
                }
                *lse = max + (old + new).ln();
            }
            out.iter_mut().for_each(|out| *out = round(dtype, *out));
        }
    }
    Ok(result)
}

/// The gradients of `q`, `k` and `v`, given `dout`, that of the output: shares of a softmax from scores and the log-sum-exp.
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
    let forward = forward(config, shape, [q, k, v], dtype, None)?;
    let (heads, head_dim) = (config.num_heads() as usize, config.head_dim() as usize);
    let scale = config.get_softmax_scale();
    let divisor = divisor(config);
    let zeros = || [q, k, v].map(|tensor| vec![0f32; tensor.len()]);
    let mut sums = zeros();
    for index in 0..config.branches().len() {
        let [mut dq, mut dk, mut dv] = zeros();
        for item in (0..shape.batch()).filter(|item| shape.valid_len(*item) > 0) {
            let branches = problem.sparse(index..index + 1, item);
            let tokens = (0..shape.valid_len(item)).flat_map(|t| (0..heads).map(move |h| (t, h)));
            for (token, head) in tokens {
                let Some(seen) = Seen::of(&problem, &branches[0], (item, token), head) else {
                    continue;
                };
                let at = problem.query_range(item, u64::from(token), head);
                let lse = forward.softmax_lse[at.start / head_dim];
                let dout = &dout[at.clone()];
                let shares: Vec<f32> = seen.scores.iter().map(|s| (s - lse).exp()).collect();
                let values = seen.keys.iter().map(|key| &v[key.clone()]);
                let dps: Vec<f32> = values.map(|value| dot(dout, value) / divisor).collect();
                let mean = match config.get_gradient() {
                    MixGradient::Exact => dot(dout, &forward.out[at]),
                    MixGradient::DetachedMix => {
                        let weight = shares.iter().sum::<f32>() + seen.zero_keys * (-lse).exp();
                        dot(&shares, &dps) / weight.max(f32::MIN_POSITIVE)
                    }
                };
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
        for (sum, of_branch) in sums.iter_mut().zip([dq, dk, dv]) {
            for (sum, of_branch) in sum.iter_mut().zip(of_branch) {
                *sum = round(dtype, *sum + round(dtype, of_branch));
            }
        }
    }
    Ok(sums)
}

/// What one row of one branch sees.
struct Seen {
    /// Elements of its query; none for a row whose query is padding.
    query: Option<Range<usize>>,
    /// Elements of its keys.
    keys: Vec<Range<usize>>,
    scores: Vec<f32>,
    zero_keys: f32,
}

impl Seen {
    /// The row that a branch writes to a token, if it sees anything.
    fn of(
        problem: &Problem<'_, f32>,
        branch: &SparseBranch,
        (item, token): (u32, u32),
        head: usize,
    ) -> Option<Self> {
        let row = branch.row_written_to(head, u64::from(token))?;
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
        let scale = problem.config.get_softmax_scale();
        let score = |key: &Range<usize>| match &query {
            Some(query) => scale * dot(&problem.q[query.clone()], &problem.k[key.clone()]),
            None => 0.0,
        };
        Some(Self {
            scores: keys.iter().map(score).collect(),
            query,
            keys,
            zero_keys,
        })
    }

    /// Output and log-sum-exp of the row in its branch.
    fn attend(&self, v: &[f32], head_dim: usize) -> (Vec<f32>, f32) {
        let lowest = if self.zero_keys > 0.0 { 0.0 } else { f32::MIN };
        let max = self.scores.iter().copied().fold(lowest, f32::max);
        let mut sum = self.zero_keys * (-max).exp();
        let mut out = vec![0.0; head_dim];
        for (key, score) in self.keys.iter().zip(&self.scores) {
            let weight = (score - max).exp();
            sum += weight;
            add(&mut out, weight, &v[key.clone()]);
        }
        out.iter_mut().for_each(|out| *out /= sum);
        (out, max + sum.ln())
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
    match config.get_heads() {
        Heads::EveryBranch => 1.0,
        Heads::Partitioned => config.branches().len() as f32,
    }
}
