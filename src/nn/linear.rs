//! Linear layers.

use super::{Init, ParameterId, ParameterList, Parameters};
use crate::error::Result;
use crate::ops::{Matmul, Matrix, bias_backward};
use crate::recorder::Recorder;

/// A linear layer: `y = x W^T + b`. W is (outputs, inputs), as in PyTorch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Linear {
    weight: ParameterId,
    bias: Option<ParameterId>,
}

impl Linear {
    /// Declares the parameters `prefix.weight` and, if `bias` gives its initial values, `prefix.bias`.
    pub fn new(
        list: &mut ParameterList,
        prefix: &str,
        [inputs, outputs]: [usize; 2],
        weight: Init,
        bias: Option<Init>,
    ) -> Self {
        Self {
            weight: list.add(format!("{prefix}.weight"), &[outputs, inputs], weight),
            bias: bias.map(|init| list.add(format!("{prefix}.bias"), &[outputs], init)),
        }
    }

    /// A layer without bias that shares a weight declared by another layer.
    pub fn tied(weight: ParameterId) -> Self {
        Self { weight, bias: None }
    }

    /// The product with its bias, to which an activation or a residual can be added before it is recorded.
    pub fn product<'a>(&self, weights: &'a Parameters, x: Matrix<'a>) -> Matmul<'a> {
        Matmul::new(x, weights.get(self.weight).matrix())
            .with_transposed_b()
            .with_bias(self.bias.map(|bias| weights.get(bias).vector()))
    }

    /// Records `y`.
    ///
    /// # Errors
    /// As [`Matmul::write`].
    pub fn forward(
        &self,
        recorder: &mut Recorder,
        weights: &Parameters,
        x: Matrix<'_>,
        y: Matrix<'_>,
    ) -> Result<()> {
        self.product(weights, x).write(recorder, y)
    }

    /// Records that the gradients of the parameters are added to `gradients`. `dy` is the gradient of `y`.
    ///
    /// # Errors
    /// As [`Matmul::add`].
    pub fn backward_parameters(
        &self,
        recorder: &mut Recorder,
        gradients: &Parameters,
        x: Matrix<'_>,
        dy: Matrix<'_>,
    ) -> Result<()> {
        let weight = gradients.get(self.weight);
        Matmul::new(dy, x)
            .with_transposed_a()
            .add(recorder, weight.matrix())?;
        match self.bias {
            Some(bias) => bias_backward(recorder, dy, gradients.get(bias).vector()),
            None => Ok(()),
        }
    }

    /// Records the gradient of `x`, written to `dx` or added to it.
    ///
    /// # Errors
    /// As [`Matmul::write`].
    pub fn backward_input(
        &self,
        recorder: &mut Recorder,
        weights: &Parameters,
        dy: Matrix<'_>,
        (dx, accumulate): (Matrix<'_>, bool),
    ) -> Result<()> {
        let product = Matmul::new(dy, weights.get(self.weight).matrix());
        match accumulate {
            true => product.add(recorder, dx),
            false => product.write(recorder, dx),
        }
    }
}
