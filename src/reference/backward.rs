//! The backward pass: the gradient of a softmax, written out for every pair of a row and a key that it sees.
//!
//! `p` is the weight of the pair in the softmax of its row over all branches, and `dp = dout . v`. Sums are over the keys of the row:
//!
//! ```text
//! dv += p * dout          dq += scale * ds * k          dk += scale * ds * q
//! ds  = p * (dp - sum(p * dp))               exact gradient: sum over the keys of all branches
//! ds  = p * (dp - sum(p * dp) / sum(p))      constant mixing weights: sums over the keys of the pair's branch
//! ```
//! Zero keys count in `p` and in `sum(p)`, but have neither `dk` nor `dv`. A row whose query is padding has `q = 0` and no `dq`.

use super::forward::{Element, Problem, all_rows, check_len, dot};
use super::sparse::{Key, SparseBranch, SparseRow};
use crate::config::{AttentionShape, DilatedAttentionConfig, Heads, MixGradient};
use crate::error::Result;

/// Gradients of the three inputs, each with the shape of its input.
#[derive(Clone, Debug, PartialEq)]
pub struct ReferenceGradients {
    /// Gradient of the queries.
    pub dq: Vec<f64>,
    /// Gradient of the keys.
    pub dk: Vec<f64>,
    /// Gradient of the values.
    pub dv: Vec<f64>,
}

/// The gradients of `sum(out * dout)`, where `out` is the output of [`forward`](super::forward) for `q`, `k` and `v`. The
/// configuration's [`MixGradient`] says how the weights that mix the branches are differentiated.
///
/// # Errors
/// [`Error::LengthMismatch`](crate::Error::LengthMismatch) when an input does not have the elements of its shape.
pub fn backward<T: Copy + Into<f64> + Sync>(
    config: &DilatedAttentionConfig,
    shape: &AttentionShape,
    q: &[T],
    k: &[T],
    v: &[T],
    dout: &[T],
) -> Result<ReferenceGradients> {
    let problem = Problem::new(config, shape, q, k, v)?;
    let dims = [shape.batch(), shape.seq_len(), config.embed_dim()];
    check_len("dout", dout.len(), dims)?;
    let mut gradients = ReferenceGradients {
        dq: vec![0.0; q.len()],
        dk: vec![0.0; k.len()],
        dv: vec![0.0; v.len()],
    };
    let mut sparse = (usize::MAX, Vec::new());
    for (item, token) in all_rows(shape) {
        if token >= shape.valid_len(item) {
            continue;
        }
        if sparse.0 != item {
            sparse = (item, problem.sparse(0..config.branches().len(), item));
        }
        for head in 0..config.num_heads() {
            add_row(
                &problem,
                &sparse.1,
                dout,
                (item, token as u64, head),
                &mut gradients,
            );
        }
    }
    Ok(gradients)
}

/// A pair of a row and a key that it sees.
struct Pair {
    branch: usize,
    query: Option<u64>,
    key: Key,
    score: f64,
    dp: f64,
}

/// Adds the contribution of the output of one token and head.
fn add_row<T: Element>(
    problem: &Problem<'_, T>,
    branches: &[SparseBranch],
    dout: &[T],
    (item, token, head): (usize, u64, usize),
    gradients: &mut ReferenceGradients,
) {
    let config = problem.config;
    let divisor = match config.heads() {
        Heads::EveryBranch => 1.0,
        Heads::Partitioned => config.branches().len() as f64,
    };
    let dout = &dout[problem.query_range(item, token, head)];
    let rows: Vec<(usize, SparseRow)> = branches
        .iter()
        .enumerate()
        .filter_map(|(index, branch)| Some((index, branch.row_written_to(head, token)?)))
        .collect();
    let mut pairs = Vec::new();
    for (branch, row) in &rows {
        for (score, key) in problem.scores(&branches[*branch], row, item, head) {
            let dp = match key {
                Key::Token(token) => {
                    dot(dout, &problem.v[problem.key_range(item, token, head)]) / divisor
                }
                Key::Zero => 0.0,
            };
            pairs.push(Pair {
                branch: *branch,
                query: branches[*branch].query_token(row),
                key,
                score,
                dp,
            });
        }
    }
    let max = pairs
        .iter()
        .fold(f64::NEG_INFINITY, |max, pair| max.max(pair.score));
    let total: f64 = pairs.iter().map(|pair| (pair.score - max).exp()).sum();
    let shares: Vec<f64> = pairs
        .iter()
        .map(|pair| (pair.score - max).exp() / total)
        .collect();
    // The mean of dp, weighted by p: over all branches, or over one branch.
    let mean = |branch: Option<usize>| {
        let (mut weighted, mut weight) = (0.0, 0.0);
        for (pair, share) in pairs.iter().zip(&shares) {
            if branch.is_none_or(|branch| branch == pair.branch) {
                weighted += share * pair.dp;
                weight += share;
            }
        }
        if weight == 0.0 {
            0.0
        } else {
            weighted / weight
        }
    };
    let means: Vec<f64> = (0..branches.len())
        .map(|branch| match config.gradient() {
            MixGradient::Exact => mean(None),
            MixGradient::DetachedMix => mean(Some(branch)),
        })
        .collect();
    let scale = f64::from(config.softmax_scale());
    for (pair, share) in pairs.iter().zip(&shares) {
        let Key::Token(key) = pair.key else { continue };
        let key = problem.key_range(item, key, head);
        let ds = scale * share * (pair.dp - means[pair.branch]);
        add(&mut gradients.dv[key.clone()], share / divisor, dout);
        if let Some(query) = pair.query {
            let query = problem.query_range(item, query, head);
            add(
                &mut gradients.dk[key.clone()],
                ds,
                &problem.q[query.clone()],
            );
            add(&mut gradients.dq[query], ds, &problem.k[key]);
        }
    }
}

/// `sum += factor * vector`.
fn add<T: Element>(sum: &mut [f64], factor: f64, vector: &[T]) {
    for (sum, &value) in sum.iter_mut().zip(vector) {
        *sum += factor * value.into();
    }
}
