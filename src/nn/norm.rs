//! Layer norms.

use super::{Init, ParameterId, ParameterList, Parameters};
use crate::error::Result;
use crate::ops::{Matrix, layer_norm, layer_norm_backward};
use crate::recorder::Recorder;

/// Layer norm of rows, with a weight and a bias.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerNorm {
    weight: ParameterId,
    bias: ParameterId,
    eps: f32,
}

impl LayerNorm {
    /// Declares `prefix.weight` and `prefix.bias`.
    pub fn new(list: &mut ParameterList, prefix: &str, width: usize, eps: f32) -> Self {
        Self {
            weight: list.add(format!("{prefix}.weight"), &[width], Init::Ones),
            bias: list.add(format!("{prefix}.bias"), &[width], Init::Zeros),
            eps,
        }
    }

    /// Records `y`.
    ///
    /// # Errors
    /// Those of [`layer_norm`].
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

    /// Records the gradient of `x`, written to `dx` or added to it, and adds those of the parameters to `gradients`.
    ///
    /// # Errors
    /// Those of [`layer_norm_backward`].
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
