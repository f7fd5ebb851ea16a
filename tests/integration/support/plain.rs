//! Dilated attention in plain single precision: how large rounding errors of an honest implementation are.
//!
//! It takes sums in order and mixes branches by their log-sum-exps, like the kernels and like torchscale. What it is
//! compared with decides what is right; this only decides how precise is precise enough.

use dilated_attention::Heads;
use dilated_attention::plan::branch::BranchGeometry;

use super::problem::{Problem, Result32};
use dilated_attention::plan::UNCOVERED_LSE;

/// The attention of `problem`.
pub fn attention(problem: &Problem) -> Result32 {
    let config = &problem.config;
    let (heads, head_dim) = (config.num_heads(), config.head_dim() as usize);
    let seq_len = problem.shape.seq_len();
    let divisor = match config.get_heads() {
        Heads::EveryBranch => 1.0,
        Heads::Partitioned => config.branches().len() as f32,
    };
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
            .map(|branch| BranchGeometry::new(config, branch, valid_len))
            .collect();
        for (token, head) in (0..valid_len).flat_map(|token| (0..heads).map(move |h| (token, h))) {
            let at = (item * seq_len + token) * heads + head;
            let out = &mut result.out[at as usize * head_dim..][..head_dim];
            let lse = &mut result.softmax_lse[at as usize];
            for geometry in &geometries {
                if let Some((branch_out, branch_lse)) = row(problem, geometry, item, token, head) {
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

/// Output and log-sum-exp of one row of one branch.
fn row(
    problem: &Problem,
    geometry: &BranchGeometry,
    item: u32,
    token: u32,
    head: u32,
) -> Option<(Vec<f32>, f32)> {
    let heads = geometry.head_begin..geometry.head_begin + geometry.head_count;
    if !heads.contains(&head) {
        return None;
    }
    let (segment, row) = geometry.row_of_output(head, token)?;
    let vector = |tensor: &'_ [f32], row: u32| {
        let token = segment * geometry.segment_length
            + geometry.offset(head)
            + row * geometry.dilation_rate;
        problem.vector(tensor, item, token, head).to_vec()
    };
    let query = (row < geometry.real_rows(segment, head)).then(|| vector(&problem.q, row));
    let scale = problem.config.get_softmax_scale();
    let keys = geometry.visible_keys(segment, head, row);
    let zero_keys = geometry.visible_zero_keys(segment, head, row) as f32;
    if keys == 0 && zero_keys == 0.0 {
        return None;
    }
    let scores: Vec<f32> = (0..keys)
        .map(|key| match &query {
            Some(query) => {
                let key = vector(&problem.k, key);
                let products = query.iter().zip(key).map(|(q, k)| q * k);
                scale * products.sum::<f32>()
            }
            None => 0.0,
        })
        .collect();
    let lowest = if zero_keys > 0.0 { 0.0 } else { f32::MIN };
    let max = scores.iter().copied().fold(lowest, f32::max);
    let mut sum = zero_keys * (-max).exp();
    let mut out = vec![0.0; problem.config.head_dim() as usize];
    for (key, score) in scores.into_iter().enumerate() {
        let weight = (score - max).exp();
        sum += weight;
        for (out, v) in out.iter_mut().zip(vector(&problem.v, key as u32)) {
            *out += weight * v;
        }
    }
    out.iter_mut().for_each(|out| *out /= sum);
    Some((out, max + sum.ln()))
}
