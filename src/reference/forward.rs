//! The forward pass: a softmax for each row over the keys that it sees, and branches mixed by their `softmax_lse`.

use std::ops::Range;
use std::thread;

use super::sparse::{Key, SparseBranch, SparseRow};
use crate::config::{AttentionShape, DilatedAttentionConfig, Heads};
use crate::error::{Error, Result};

/// The `softmax_lse` of a row that sees no key: far below any other, and finite, because shaders have no infinity.
pub const UNCOVERED_LSE: f64 = -1e30;

/// An element type that the reference reads. It converts to `f64` without loss.
pub(super) trait Element: Copy + Into<f64> + Sync {}
impl<T: Copy + Into<f64> + Sync> Element for T {}

/// Result of a forward pass over some rows: all tokens of all items, unless the function takes a list of rows.
#[derive(Clone, Debug, PartialEq)]
pub struct ReferenceOutput {
    /// The attention output, (rows, heads, head size); 0 where uncovered.
    pub out: Vec<f64>,
    /// Natural logarithm of the sum of the exponentials of the scores, (rows, heads); [`UNCOVERED_LSE`] where uncovered.
    pub softmax_lse: Vec<f64>,
}

/// Dilated attention of `q`, `k` and `v`, each (batch, token, head, element). The output has this shape, too; `softmax_lse` is
/// (batch, token, head).
///
/// # Errors
/// [`Error::LengthMismatch`] when an input does not have the elements of its shape.
pub fn forward<T: Copy + Into<f64> + Sync>(
    config: &DilatedAttentionConfig,
    shape: &AttentionShape,
    q: &[T],
    k: &[T],
    v: &[T],
) -> Result<ReferenceOutput> {
    Problem::new(config, shape, q, k, v)?.rows(&all_rows(shape), Part::Mixed)
}

/// [`forward`] of only the given rows `(item, token)`, in the given order. The cost depends on the number of rows, not on the
/// length of the sequence.
///
/// # Errors
/// [`Error::LengthMismatch`] when an input does not have the elements of its shape, [`Error::InvalidShape`] when a row
/// lies outside the shape.
pub fn forward_rows<T: Copy + Into<f64> + Sync>(
    config: &DilatedAttentionConfig,
    shape: &AttentionShape,
    q: &[T],
    k: &[T],
    v: &[T],
    rows: &[(usize, usize)],
) -> Result<ReferenceOutput> {
    Problem::new(config, shape, q, k, v)?.rows(rows, Part::Mixed)
}

/// The output and `softmax_lse` of branch number `branch` alone, before branches are mixed (and, with partitioned heads, before the
/// division by the number of branches). Rows that this branch does not cover are uncovered.
///
/// # Errors
/// As [`forward`]; [`Error::InvalidShape`] when there is no such branch.
pub fn forward_branch<T: Copy + Into<f64> + Sync>(
    config: &DilatedAttentionConfig,
    shape: &AttentionShape,
    q: &[T],
    k: &[T],
    v: &[T],
    branch: usize,
) -> Result<ReferenceOutput> {
    Problem::new(config, shape, q, k, v)?.rows(&all_rows(shape), Part::Branch(branch))
}

/// [`forward_branch`] of only the given rows `(item, token)`.
///
/// # Errors
/// As [`forward_rows`]; [`Error::InvalidShape`] when there is no such branch.
pub fn forward_branch_rows<T: Copy + Into<f64> + Sync>(
    config: &DilatedAttentionConfig,
    shape: &AttentionShape,
    q: &[T],
    k: &[T],
    v: &[T],
    branch: usize,
    rows: &[(usize, usize)],
) -> Result<ReferenceOutput> {
    Problem::new(config, shape, q, k, v)?.rows(rows, Part::Branch(branch))
}

/// Checks that a tensor of `given` elements has these dimensions.
pub(super) fn check_len(label: &'static str, given: usize, dims: [usize; 3]) -> Result<()> {
    let expected = dims
        .iter()
        .try_fold(1u64, |product, dim| product.checked_mul(*dim as u64))
        .ok_or_else(|| Error::SizeOverflow {
            what: label.into(),
            given: format!("{dims:?}"),
        })?;
    if given as u64 != expected {
        return Err(Error::LengthMismatch {
            label: label.into(),
            given: given as u64,
            expected,
        });
    }
    Ok(())
}

/// The dot product of two vectors.
pub(super) fn dot<A: Element, B: Element>(a: &[A], b: &[B]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| a.into() * b.into()).sum()
}

/// Every row of a shape, item by item.
pub(super) fn all_rows(shape: &AttentionShape) -> Vec<(usize, usize)> {
    (0..shape.batch())
        .flat_map(|item| (0..shape.seq_len()).map(move |token| (item, token)))
        .collect()
}

/// Which branches a result covers.
#[derive(Clone, Copy)]
enum Part {
    /// All branches, mixed.
    Mixed,
    /// One branch alone.
    Branch(usize),
}

/// The inputs of one call, their lengths checked.
pub(super) struct Problem<'a, T> {
    pub(super) config: &'a DilatedAttentionConfig,
    pub(super) shape: &'a AttentionShape,
    pub(super) q: &'a [T],
    pub(super) k: &'a [T],
    pub(super) v: &'a [T],
}

impl<'a, T: Element> Problem<'a, T> {
    pub(super) fn new(
        config: &'a DilatedAttentionConfig,
        shape: &'a AttentionShape,
        q: &'a [T],
        k: &'a [T],
        v: &'a [T],
    ) -> Result<Self> {
        shape.check_config(config)?;
        let (seq_len, key_len) = (shape.seq_len(), shape.key_len());
        for (label, tensor, len) in [("q", q, seq_len), ("k", k, key_len), ("v", v, key_len)] {
            check_len(
                label,
                tensor.len(),
                [shape.batch(), len, config.embed_dim()],
            )?;
        }
        Ok(Self {
            config,
            shape,
            q,
            k,
            v,
        })
    }

    /// The given branches for the lengths of one item.
    pub(super) fn sparse(&self, branches: Range<usize>, item: usize) -> Vec<SparseBranch> {
        let lens =
            [self.shape.valid_len(item), self.shape.valid_key_len(item)].map(|len| len as u64);
        branches
            .map(|branch| SparseBranch::new(self.config, branch, (lens[0], lens[1])))
            .collect()
    }

    /// Computes `rows`, cut into one run of rows for each thread.
    fn rows(&self, rows: &[(usize, usize)], part: Part) -> Result<ReferenceOutput> {
        let branches = match part {
            Part::Mixed => 0..self.config.branches().len(),
            Part::Branch(branch) if branch < self.config.branches().len() => branch..branch + 1,
            Part::Branch(branch) => {
                return Err(Error::InvalidShape {
                    what: "branch".into(),
                    given: branch.to_string(),
                    need: format!("below {}", self.config.branches().len()),
                });
            }
        };
        let (batch, seq_len) = (self.shape.batch(), self.shape.seq_len());
        if let Some((item, token)) = rows
            .iter()
            .find(|(item, token)| *item >= batch || *token >= seq_len)
        {
            return Err(Error::InvalidShape {
                what: "row".into(),
                given: format!("(item {item}, token {token})"),
                need: format!("inside a shape of {batch} items of {seq_len} tokens"),
            });
        }
        let (heads, width) = (self.config.num_heads(), self.config.embed_dim());
        let divisor = match (part, self.config.heads()) {
            (Part::Mixed, Heads::Partitioned) => self.config.branches().len() as f64,
            _ => 1.0,
        };
        let mut result = ReferenceOutput {
            out: vec![0.0; rows.len() * width],
            softmax_lse: vec![UNCOVERED_LSE; rows.len() * heads],
        };
        let threads = thread::available_parallelism().map_or(1, usize::from);
        let run = rows.len().div_ceil(threads).max(1);
        let runs = rows
            .chunks(run)
            .zip(result.out.chunks_mut(run * width))
            .zip(result.softmax_lse.chunks_mut(run * heads));
        if rows.len() <= run {
            // A single run needs no thread. Targets without threads always come here.
            for ((rows, out), lse) in runs {
                self.run_of_rows(rows, branches.clone(), divisor, out, lse);
            }
        } else {
            thread::scope(|scope| {
                for ((rows, out), lse) in runs {
                    let branches = branches.clone();
                    scope.spawn(move || self.run_of_rows(rows, branches, divisor, out, lse));
                }
            });
        }
        Ok(result)
    }

    /// Computes `rows` into `out` and `lse`. On entry these hold the values of uncovered rows.
    fn run_of_rows(
        &self,
        rows: &[(usize, usize)],
        branches: Range<usize>,
        divisor: f64,
        out: &mut [f64],
        lse: &mut [f64],
    ) {
        let (heads, head_dim) = (self.config.num_heads(), self.config.head_dim());
        let mut sparse: Vec<SparseBranch> = Vec::new();
        let mut sparse_item = None;
        for (&(item, token), (out, lse)) in rows
            .iter()
            .zip(out.chunks_mut(heads * head_dim).zip(lse.chunks_mut(heads)))
        {
            // Tokens after the valid length of an item do not exist: they stay uncovered.
            let valid_len = self.shape.valid_len(item) as u64;
            let token = token as u64;
            if token >= valid_len {
                continue;
            }
            if sparse_item != Some(item) {
                sparse = self.sparse(branches.clone(), item);
                sparse_item = Some(item);
            }
            for head in 0..heads {
                let parts: Vec<Attended> = sparse
                    .iter()
                    .filter_map(|branch| {
                        let row = branch.row_written_to(head, token)?;
                        self.attend(branch, &row, item, head)
                    })
                    .collect();
                let Some(mixed) = mix(&parts) else { continue };
                for (out, value) in out[head * head_dim..].iter_mut().zip(mixed.out) {
                    *out = value / divisor;
                }
                lse[head] = mixed.softmax.lse();
            }
        }
    }

    /// The attention of one row of one branch; `None` when the row sees no key.
    fn attend(
        &self,
        branch: &SparseBranch,
        row: &SparseRow,
        item: usize,
        head: usize,
    ) -> Option<Attended> {
        let scores = self.scores(branch, row, item, head);
        if scores.is_empty() {
            return None;
        }
        let softmax = Softmax::new(scores.iter().map(|(score, _)| *score));
        let mut out = vec![0.0; self.config.head_dim()];
        for (score, key) in scores {
            if let Key::Token(token) = key {
                let weight = softmax.weight(score);
                let v = &self.v[self.key_range(item, token, head)];
                for (out, &v) in out.iter_mut().zip(v) {
                    *out += weight * v.into();
                }
            }
        }
        Some(Attended { out, softmax })
    }

    /// The keys that the row sees, each with its score.
    pub(super) fn scores(
        &self,
        branch: &SparseBranch,
        row: &SparseRow,
        item: usize,
        head: usize,
    ) -> Vec<(f64, Key)> {
        let scale = f64::from(self.config.softmax_scale());
        let query = branch.query_token(row);
        let score = |key: Key| {
            let score = match (&key, query) {
                (Key::Token(token), Some(query)) => {
                    let q = &self.q[self.query_range(item, query, head)];
                    let k = &self.k[self.key_range(item, *token, head)];
                    scale * dot(q, k)
                }
                // The query is padding, or the key is a zero key.
                (Key::Token(_), None) | (Key::Zero, _) => 0.0,
            };
            (score, key)
        };
        branch.keys(row).map(score).collect()
    }

    /// Range of the vector of one token and head in the tensors of queries and outputs.
    pub(super) fn query_range(&self, item: usize, token: u64, head: usize) -> Range<usize> {
        self.range(self.shape.seq_len(), item, token, head)
    }

    /// Range of the vector of one token and head in the tensors of keys and values.
    pub(super) fn key_range(&self, item: usize, token: u64, head: usize) -> Range<usize> {
        self.range(self.shape.key_len(), item, token, head)
    }

    fn range(&self, len: usize, item: usize, token: u64, head: usize) -> Range<usize> {
        let head_dim = self.config.head_dim();
        let row = item * len + token as usize;
        let begin = (row * self.config.num_heads() + head) * head_dim;
        begin..begin + head_dim
    }
}

/// The attention of one row and head over some keys.
struct Attended {
    /// Weighted mean of the values.
    out: Vec<f64>,
    /// The softmax of the scores, which gives the weights.
    softmax: Softmax,
}

/// The denominator of a softmax, `sum(exp(score))`, kept as `exp(max) * sum`. So nothing overflows, and weights are right even if
/// `max` is so large that adding `ln(sum)` would not change it.
#[derive(Clone, Copy)]
struct Softmax {
    max: f64,
    sum: f64,
}

impl Softmax {
    /// The softmax over `scores`, of which there must be at least one. A NaN or infinite score makes the weights NaN.
    fn new(scores: impl Iterator<Item = f64> + Clone) -> Self {
        let max = scores.clone().fold(f64::NEG_INFINITY, f64::max);
        let sum = scores.map(|score| (score - max).exp()).sum();
        Self { max, sum }
    }

    /// The softmax over the scores of all `parts` together.
    fn union(parts: &[Attended]) -> Self {
        let maxima = parts.iter().map(|part| part.softmax.max);
        let max = maxima.fold(f64::NEG_INFINITY, f64::max);
        let sums = parts.iter().map(|part| part.softmax.sum_relative_to(max));
        Self {
            max,
            sum: sums.sum(),
        }
    }

    /// The weight of a score.
    fn weight(&self, score: f64) -> f64 {
        (score - self.max).exp() / self.sum
    }

    /// `sum(exp(score - max))` for another `max`.
    fn sum_relative_to(&self, max: f64) -> f64 {
        self.sum * (self.max - max).exp()
    }

    /// `ln(sum(exp(score)))`.
    fn lse(&self) -> f64 {
        self.max + self.sum.ln()
    }
}

/// Mixes the results of the branches for one row: each is weighted by its share of the sum over all keys of all branches, which is
/// the softmax of the `softmax_lse`. `None` when no branch covers the row.
fn mix(parts: &[Attended]) -> Option<Attended> {
    let mut out = vec![0.0; parts.first()?.out.len()];
    let softmax = Softmax::union(parts);
    for part in parts {
        let weight = part.softmax.sum_relative_to(softmax.max) / softmax.sum;
        for (out, value) in out.iter_mut().zip(&part.out) {
            *out += weight * value;
        }
    }
    Some(Attended { out, softmax })
}
