//! Dilated attention in plain single precision: how large rounding errors of an honest implementation are.
//!
//! It takes sums in order and mixes branches by their log-sum-exps, like the kernels and like torchscale. What it is
//! compared with decides what is right; this only decides how precise is precise enough.

use std::ops::Range;

use dilated_attention::plan::branch::BranchGeometry;
use dilated_attention::{Heads, MixGradient};

use super::problem::{Problem, Result32};
use dilated_attention::plan::UNCOVERED_LSE;

/// The attention of `problem`.
pub fn attention(problem: &Problem) -> Result32 {
    let config = &problem.config;
    let (heads, head_dim) = (config.num_heads(), config.head_dim() as usize);
    let seq_len = problem.shape.seq_len();
    let divisor = divisor(problem);
    let mut result = Result32 {
        out: vec![0.0; problem.q.len()],
        softmax_lse: vec![UNCOVERED_LSE; problem.q.len() / head_dim],
    };
    for item in 0..problem.shape.batch() {
        let valid_len = problem.shape.valid_len(item);
        if valid_len == 0 {
            continue;
        }
        let geometries: Vec<_> = (0..config.branches().len() as u32)
            .map(|branch| geometry(problem, item, branch))
            .collect();
        for (token, head) in (0..valid_len).flat_map(|token| (0..heads).map(move |h| (token, h))) {
            let at = (item * seq_len + token) * heads + head;
            let out = &mut result.out[at as usize * head_dim..][..head_dim];
            let lse = &mut result.softmax_lse[at as usize];
            for geometry in &geometries {
                if let Some(row) = row(problem, geometry, item, token, head) {
                    let (branch_out, branch_lse) = attend(problem, &row);
                    let max = lse.max(branch_lse);
                    let (old, new) = ((*lse - max).exp(), (branch_lse - max).exp());
                    for (out, branch_out) in out.iter_mut().zip(branch_out) {
                        *out = (old * *out + new * branch_out / divisor) / (old + new);
                    }
                    *lse = max + (old + new).ln();
                }
            }
        }
    }
    result
}

/// A branch as it is over one item.
fn geometry(problem: &Problem, item: u32, branch: u32) -> BranchGeometry {
    let shape = &problem.shape;
    let lens = (shape.valid_len(item), shape.valid_key_len(item));
    BranchGeometry::cross(&problem.config, branch, lens.0, lens.1)
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

/// The row that a branch writes to a token, if it sees anything.
fn row(
    problem: &Problem,
    geometry: &BranchGeometry,
    item: u32,
    token: u32,
    head: u32,
) -> Option<Seen> {
    let heads = geometry.head_begin..geometry.head_begin + geometry.head_count;
    if !heads.contains(&head) {
        return None;
    }
    let (segment, row) = geometry.row_of_output(head, token)?;
    let token = |row: u32| {
        segment * geometry.segment_length + geometry.offset(head) + row * geometry.dilation_rate
    };
    let query = (row < geometry.real_rows(segment, head))
        .then(|| problem.query_range(item, token(row), head));
    let scale = problem.config.get_softmax_scale();
    let keys: Vec<_> = (0..geometry.visible_keys(segment, head, row))
        .map(|key| problem.key_range(item, token(key), head))
        .collect();
    let zero_keys = geometry.visible_zero_keys(segment, head, row) as f32;
    if keys.is_empty() && zero_keys == 0.0 {
        return None;
    }
    let scores = keys
        .iter()
        .map(|key| match &query {
            Some(query) => scale * dot(&problem.q[query.clone()], &problem.k[key.clone()]),
            None => 0.0,
        })
        .collect();
    Some(Seen {
        query,
        keys,
        scores,
        zero_keys,
    })
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Output and log-sum-exp of one row of one branch.
fn attend(problem: &Problem, row: &Seen) -> (Vec<f32>, f32) {
    let lowest = if row.zero_keys > 0.0 { 0.0 } else { f32::MIN };
    let max = row.scores.iter().copied().fold(lowest, f32::max);
    let mut sum = row.zero_keys * (-max).exp();
    let mut out = vec![0.0; problem.config.head_dim() as usize];
    for (key, score) in row.keys.iter().zip(&row.scores) {
        let weight = (score - max).exp();
        sum += weight;
        for (out, v) in out.iter_mut().zip(&problem.v[key.clone()]) {
            *out += weight * v;
        }
    }
    out.iter_mut().for_each(|out| *out /= sum);
    (out, max + sum.ln())
}

/// The gradients of `problem`: shares from scores and the log-sum-exp, like the kernels.
pub fn gradients(problem: &Problem) -> [Vec<f32>; 3] {
    let config = &problem.config;
    let (heads, head_dim) = (config.num_heads(), config.head_dim() as usize);
    let forward = attention(problem);
    let scale = config.get_softmax_scale();
    let divisor = divisor(problem);
    let [mut dq, mut dk, mut dv] =
        [&problem.q, &problem.k, &problem.v].map(|tensor| vec![0f32; tensor.len()]);
    for item in 0..problem.shape.batch() {
        let valid_len = problem.shape.valid_len(item);
        if valid_len == 0 {
            continue;
        }
        for branch in 0..config.branches().len() as u32 {
            let geometry = geometry(problem, item, branch);
            for (token, head) in
                (0..valid_len).flat_map(|token| (0..heads).map(move |head| (token, head)))
            {
                let Some(row) = row(problem, &geometry, item, token, head) else {
                    continue;
                };
                let at = problem.query_range(item, token, head);
                let lse = forward.softmax_lse[at.start / head_dim];
                let dout = &problem.dout[at.clone()];
                let shares: Vec<f32> = row.scores.iter().map(|s| (s - lse).exp()).collect();
                let dps: Vec<f32> = row
                    .keys
                    .iter()
                    .map(|key| dot(dout, &problem.v[key.clone()]) / divisor)
                    .collect();
                let mean = match config.get_gradient() {
                    MixGradient::Exact => dot(dout, &forward.out[at]),
                    MixGradient::DetachedMix => {
                        let weight = shares.iter().sum::<f32>() + row.zero_keys * (-lse).exp();
                        dot(&shares, &dps) / weight.max(f32::MIN_POSITIVE)
                    }
                };
                for ((key, share), dp) in row.keys.iter().zip(shares).zip(dps) {
                    let ds = scale * share * (dp - mean);
                    add(&mut dv[key.clone()], share / divisor, dout);
                    if let Some(query) = &row.query {
                        add(&mut dk[key.clone()], ds, &problem.q[query.clone()]);
                        add(&mut dq[query.clone()], ds, &problem.k[key.clone()]);
                    }
                }
            }
        }
    }
    [dq, dk, dv]
}

fn add(sum: &mut [f32], factor: f32, vector: &[f32]) {
    for (sum, value) in sum.iter_mut().zip(vector) {
        *sum += factor * value;
    }
}

fn divisor(problem: &Problem) -> f32 {
    match problem.config.get_heads() {
        Heads::EveryBranch => 1.0,
        Heads::Partitioned => problem.config.branches().len() as f32,
    }
}
