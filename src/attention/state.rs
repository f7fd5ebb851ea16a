//! From softmax states to log-sum-exp.

/// Log-sum-exp of a row that no branch covers. It is finite, because WGSL has no infinities.
pub const UNCOVERED_LSE: f32 = -1e30;

/// Log-sum-exp `ln(sum(exp(score)))` of each row, from downloaded softmax states `(m, s)`
/// ([`ForwardOutput::softmax_state`](super::ForwardOutput::softmax_state)). It is `(m + log2(s)) * ln(2)`, computed in f64 and
/// rounded once; [`UNCOVERED_LSE`] where `s` is 0.
///
/// ```
/// use dilated_attention::{UNCOVERED_LSE, softmax_lse};
/// // Four keys of score 0, one key of score 8 in log2 units, no key.
/// let lse = softmax_lse(&[0.0, 4.0, 8.0, 1.0, 0.0, 0.0]);
/// assert_eq!(lse, [4f32.ln(), 256f32.ln(), UNCOVERED_LSE]);
/// ```
pub fn softmax_lse(softmax_state: &[f32]) -> Vec<f32> {
    let rows = softmax_state.chunks_exact(2);
    rows.map(|row| match (f64::from(row[0]), f64::from(row[1])) {
        (_, 0.0) => UNCOVERED_LSE,
        (top, sum) => ((top + sum.log2()) * std::f64::consts::LN_2) as f32,
    })
    .collect()
}
