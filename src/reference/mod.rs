//! The reference: dilated attention in f64 on the CPU, as a textbook would write it. Every kernel is compared with it.
//!
//! Nothing here is shared with the kernels or with [`plan`](crate::plan). Even the index arithmetic is written again, from the
//! definition, so that a mistake in one cannot hide in the other. The definition, for one branch with segment length `w` and
//! dilation rate `r` over a sequence of `N` tokens:
//!
//! ```text
//! w' = min(w, N)     n = ceil(N / w') segments     L = ceil(w' / r) rows of a segment     o = offset of the head
//!
//! Row t of segment s stands for token s*w' + u, where u = o + r*t. The row is real if u < w' and that token exists; otherwise
//! it is padding.
//! The row sees the rows t' of its segment (causal: only t' <= t). Padding among them is either absent (masked), or a key of
//! score 0 and value 0 (zero keys).
//! The row is written to its own token (aligned; padding is not written), or to token s*L*r + u if that token exists
//! (torchscale; padding is written too, with a query of zeros).
//! ```
//!
//! The output of a row is the mean of the values that it sees, weighted by the softmax of the scores. Its `softmax_lse` is
//! `ln(sum(exp(score)))`. Branches are mixed with the softmax of their `softmax_lse`. That equals one softmax over all keys of all
//! branches, as a test checks. A row that sees no key in any branch is *uncovered*: its output is 0 and its `softmax_lse` is
//! [`UNCOVERED_LSE`]. Whether a row is covered depends on indices only, never on values.
//!
//! A row reads only the keys that it sees, so a NaN or an infinity affects exactly the rows that see it.
//!
//! [`backward`] returns the gradients. Tests compare it with finite differences of [`forward`].
//!
//! Functions take elements of any type that converts to `f64` without loss (`f32`, `f64`, `half::f16`), so that long f32 inputs
//! need no copy. They use as many threads as the machine runs at once. One thread computes a row, in a fixed order, so results do
//! not depend on the number of threads.
//!
//! ```
//! use dilated_attention::{AttentionShape, DilatedAttentionConfig, reference};
//! let config = DilatedAttentionConfig::new(1, 4, &[2], &[1])?;
//! let shape = AttentionShape::new(1, 2)?;
//! let zeros = [0.0; 8];
//! let v = [1.0, 1.0, 1.0, 1.0, 3.0, 3.0, 3.0, 3.0];
//! let result = reference::forward(&config, &shape, &zeros, &zeros, &v)?;
//! assert_eq!(result.out, [2.0; 8]);
//! assert_eq!(result.softmax_lse, [2f64.ln(); 2]);
//! # Ok::<(), dilated_attention::Error>(())
//! ```

mod backward;
mod forward;
#[cfg(feature = "testing")]
pub(crate) mod layers;
#[cfg(feature = "testing")]
pub(crate) mod model;
#[cfg(feature = "testing")]
pub(crate) mod plain;
mod sparse;
#[cfg(test)]
mod tests;

pub use backward::{ReferenceGradients, backward};
pub use forward::{
    ReferenceOutput, UNCOVERED_LSE, forward, forward_branch, forward_branch_rows, forward_rows,
};
