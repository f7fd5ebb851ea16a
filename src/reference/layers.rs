//! Layers in f64, forward only. The kernels of [`ops`](crate::ops) are compared with them; gradients are compared with finite
//! differences of these functions.
//!
//! Matrices are row-major slices. Lengths that do not fit panic, because the callers are tests.

/// `x w^T + b` for rows of `inner` elements. `w` is (outputs, inner); `b` is empty or has one element for each output.
///
/// # Panics
/// When lengths do not fit.
pub fn linear(x: &[f64], w: &[f64], b: &[f64], inner: usize) -> Vec<f64> {
    assert!(x.len().is_multiple_of(inner) && w.len().is_multiple_of(inner));
    let outputs = w.len() / inner;
    assert!(b.is_empty() || b.len() == outputs);
    let row = |x: &[f64]| -> Vec<f64> {
        (0..outputs)
            .map(|o| {
                let products = x.iter().zip(&w[o * inner..][..inner]).map(|(x, w)| x * w);
                products.sum::<f64>() + b.get(o).copied().unwrap_or(0.0)
            })
            .collect()
    };
    x.chunks(inner).flat_map(row).collect()
}

/// `(x - mean) / sqrt(variance + eps) * weight + bias` for each row.
///
/// # Panics
/// When lengths do not fit.
pub fn layer_norm(x: &[f64], weight: &[f64], bias: &[f64], eps: f64) -> Vec<f64> {
    let width = weight.len();
    assert!(bias.len() == width && x.len().is_multiple_of(width));
    let row = |x: &[f64]| -> Vec<f64> {
        let mean = x.iter().sum::<f64>() / width as f64;
        let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width as f64;
        let scale = 1.0 / (variance + eps).sqrt();
        x.iter()
            .zip(weight.iter().zip(bias))
            .map(|(x, (weight, bias))| (x - mean) * scale * weight + bias)
            .collect()
    };
    x.chunks(width).flat_map(row).collect()
}

/// RMS norm: `x / sqrt(mean of squares + eps) * weight` for each row. Rows have as many elements as `weight`.
///
/// # Panics
/// When `x` does not consist of such rows.
pub fn rms_norm(x: &[f64], weight: &[f64], eps: f64) -> Vec<f64> {
    assert!(x.len().is_multiple_of(weight.len()));
    let row = |x: &[f64]| -> Vec<f64> {
        let mean = x.iter().map(|x| x * x).sum::<f64>() / weight.len() as f64;
        let scale = 1.0 / (mean + eps).sqrt();
        x.iter()
            .zip(weight)
            .map(|(x, weight)| x * scale * weight)
            .collect()
    };
    x.chunks(weight.len()).flat_map(row).collect()
}

/// The error function, `2/sqrt(pi) exp(-x^2) sum 2^n x^(2n+1) / (1 3 5 .. (2n+1))`. All terms have the same sign, so nothing cancels.
pub fn erf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.signum();
    }
    let (mut term, mut sum, mut n) = (x, 0.0, 0.0);
    while sum + term != sum {
        sum += term;
        n += 1.0;
        term *= 2.0 * x * x / (2.0 * n + 1.0);
    }
    2.0 / std::f64::consts::PI.sqrt() * (-x * x).exp() * sum
}

/// `x/2 (1 + erf(x / sqrt 2))`.
pub fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2))
}

/// `max(x, 0)`.
pub fn relu(x: f64) -> f64 {
    x.max(0.0)
}

/// `x / (1 + exp(-x))`.
pub fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// `ln sum exp(logits) - logits[label]` of one row.
///
/// # Panics
/// When there is no such label.
pub fn cross_entropy(logits: &[f64], label: usize) -> f64 {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logits.iter().map(|logit| (logit - max).exp()).sum();
    max + sum.ln() - logits[label]
}

/// xPos of one head at `position`: pair i is rotated by the angle `position * 10000^(-2i/d)` and scaled by `zeta_i^exponent`. The
/// exponent is `(position - centre) / base` for queries and the negative of that for keys.
pub fn xpos(head: &[f64], position: f64, exponent: f64) -> Vec<f64> {
    let d = head.len() as f64;
    let pair = |(i, pair): (usize, &[f64])| {
        let i = i as f64;
        let (sin, cos) = (position * 10_000f64.powf(-2.0 * i / d)).sin_cos();
        let scale = ((2.0 * i + 0.4 * d) / (1.4 * d)).powf(exponent);
        let (a, b) = (pair[0], pair[1]);
        [scale * (a * cos - b * sin), scale * (b * cos + a * sin)]
    };
    head.chunks_exact(2).enumerate().flat_map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values from tables, correct to the last digit.
    #[test]
    fn erf_is_that_of_tables() {
        for (x, expected) in [
            (0.0, 0.0),
            (0.1, 0.112_462_916_018_284_9),
            (1.0, 0.842_700_792_949_714_9),
            (2.0, 0.995_322_265_018_952_7),
            (3.0, 0.999_977_909_503_001_4),
            (7.0, 1.0),
        ] {
            assert!((erf(x) - expected).abs() < 1e-14, "{x}");
            assert!((erf(-x) + expected).abs() < 1e-14, "{x}");
        }
    }
}
