//! Linear layers.

use super::{Init, ParameterId, ParameterList, Parameters};
use crate::error::Result;
use crate::ops::{Matmul, Matrix, bias_backward};
use crate::recorder::Recorder;

/// `y = x W^T + b`, W (out, in) as PyTorch stores it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Linear {
    weight: ParameterId,
    bias: Option<ParameterId>,
}

impl Linear {
    /// Declares `prefix.weight` and, where `bias` says how it starts, `prefix.bias`.
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

    /// A layer without bias whose weight is a parameter declared elsewhere.
    pub fn tied(weight: ParameterId) -> Self {
        Self { weight, bias: None }
    }

    /// The product, for epilogues to be added.
    pub fn product<'a>(&self, weights: &'a Parameters, x: Matrix<'a>) -> Matmul<'a> {
        Matmul::new(x, weights.get(self.weight).matrix())
            .with_transposed_b()
            .with_bias(self.bias.map(|bias| weights.get(bias).vector()))
    }

    /// Records `y`.
    ///
    /// # Errors
    /// Those of [`Matmul::write`].
    pub fn forward(
        &self,
        recorder: &mut Recorder,
        weights: &Parameters,
        x: Matrix<'_>,
        y: Matrix<'_>,
    ) -> Result<()> {
        self.product(weights, x).write(recorder, y)
    }

    /// Records that the gradients of the parameters are added to `gradients`, given that of `y`.
    ///
    /// # Errors
    /// Those of [`Matmul::add`].
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
    /// Those of [`Matmul::write`].
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
