//! Dilated attention in 64-bit floating point on the CPU, as a textbook would write it: the yardstick of every kernel.
//!
//! Nothing here is shared with the kernels or with [`plan`](crate::plan): the index arithmetic is written again, from
//! the definition, so that a mistake in one cannot hide in the other. The definition, for one branch with segment
//! length `w` and dilation rate `r` over a sequence of `N` tokens:
//!
//! ```text
//! w' = min(w, N)     n = ceil(N / w') segments     L = ceil(w' / r) rows a segment and head     o = offset of the head
//!
//! row t of segment s stands for token s*w' + u, u = o + r*t; it is real when u < w' and that token exists, else padding
//! it sees the rows t' of its segment (causal: t' <= t); padding among them is either absent (masked) or a key of
//! score 0 and value 0 (zero keys)
//! it is written to its token (aligned; padding is not written) or to token s*L*r + u (torchscale; padding is written
//! too, with a query of zeros), as far as that token exists
//! ```
//!
//! One row's output is the softmax-weighted mean of the values it sees, its `softmax_lse` the natural logarithm of the
//! sum of the exponentials of its scores. Branches are mixed with the softmax of their `softmax_lse`, which is the same
//! as one softmax over all keys of all branches together; a test checks it. A row that sees nothing in any branch is
//! *uncovered*: its output is 0 and its `softmax_lse` is [`UNCOVERED_LSE`]. Whether a row is covered follows from
//! indices alone, never from a value.
//!
//! A row only ever touches the keys that it sees, so a NaN or an infinity poisons exactly the rows that see it.
//!
//! [`backward`] returns the gradients; tests compare it with finite differences of [`forward`].
//!
//! Functions take elements of any type that converts to `f64` without loss (`f32`, `f64`, `half::f16`), so that long
//! single-precision inputs need no copy. The work is shared by as many threads as the machine runs at once; each row is
//! computed by one of them in a fixed order, so results do not depend on their number.
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
