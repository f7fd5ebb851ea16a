//! Layer norms.

use super::{Init, ParameterId, ParameterList, Parameters};
use crate::error::Result;
use crate::ops::{Matrix, layer_norm, layer_norm_backward};
use crate::recorder::Recorder;

/// A layer norm of rows, with weight and bias.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerNorm {
    weight: ParameterId,
    bias: ParameterId,
    eps: f32,
}

impl LayerNorm {
    /// Declares the parameters `prefix.weight` and `prefix.bias`.
    pub fn new(list: &mut ParameterList, prefix: &str, width: usize, eps: f32) -> Self {
        Self {
            weight: list.add(format!("{prefix}.weight"), &[width], Init::Ones),
            bias: list.add(format!("{prefix}.bias"), &[width], Init::Zeros),
            eps,
        }
    }

    /// Records `y = norm(x)`.
    ///
    /// # Errors
    /// As [`layer_norm`].
    pub fn forward(
        &self,
        recorder: &mut Recorder,
        weights: &Parameters,
        x: Matrix<'_>,
        y: Matrix<'_>,
    ) -> Result<()> {
        let parameters = [self.weight, self.bias].map(|id| weights.get(id).vector());
        layer_norm(recorder, x, parameters, self.eps, y)
    }

    /// Records the backward. The gradient of `x` is written to `dx` or added to it; those of the parameters are added to `gradients`.
    ///
    /// # Errors
    /// As [`layer_norm_backward`].
    pub fn backward(
        &self,
        recorder: &mut Recorder,
        [weights, gradients]: [&Parameters; 2],
        x: Matrix<'_>,
        dy: Matrix<'_>,
        dx: (Matrix<'_>, bool),
    ) -> Result<()> {
        let weight = weights.get(self.weight).vector();
        let sums = [self.weight, self.bias].map(|id| gradients.get(id).vector());
        layer_norm_backward(recorder, x, weight, self.eps, dy, dx, sums)
    }
}
