//! Feed-forward networks, computed in chunks of rows.
//!
//! The intermediate activations are usually four times as wide as those around them. They never exist as a whole: chunks of rows go
//! through all steps one after the other, and the backward computes the intermediate activations of each chunk again.

use std::ops::Range;

use super::parameters::dropout_at;
use super::{Init, LayerNorm, Linear, ParameterList, Parameters, StepSeed};
use crate::device::DType;
use crate::error::Result;
use crate::kernels::activation::Activation;
use crate::ops::{Matrix, ScaledAdd, activation, activation_backward};
use crate::recorder::Recorder;

/// Approximate bytes of the intermediate activations of a chunk.
const CHUNK_BYTES: usize = 16 << 20;

/// A feed-forward network: `fc2(norm(activation(fc1(x))))`. The norm is optional (sub-LN).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FeedForward {
    fc1: Linear,
    norm: Option<LayerNorm>,
    fc2: Linear,
    activation: Activation,
    /// Probability that an element of the activation is dropped in training.
    dropout: f32,
    hidden: usize,
    /// Number of the network's dropout in the model. Dropouts with different numbers are independent.
    place: u64,
}

/// Sizes and options of a feed-forward network.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FeedForwardConfig {
    /// Elements of a row of the input and the output.
    pub embed_dim: usize,
    /// Elements of a row of the intermediate activations.
    pub ffn_dim: usize,
    /// Activation between the two linear layers.
    pub activation: Activation,
    /// Epsilon of the layer norm of the intermediate activations; `None` for no norm.
    pub norm_eps: Option<f32>,
    /// Probability that an element of the activation is dropped in training.
    pub dropout: f32,
    /// Factor on the initial weights.
    pub gain: f32,
}

impl FeedForward {
    /// Declares the parameters `prefix.fc1`, `prefix.fc2` and, with a norm, `prefix.ffn_layernorm`.
    pub fn new(
        list: &mut ParameterList,
        prefix: &str,
        config: &FeedForwardConfig,
        place: u64,
    ) -> Self {
        let &FeedForwardConfig {
            embed_dim,
            ffn_dim,
            gain,
            ..
        } = config;
        let mut linear = |name: &str, inputs, outputs| {
            let (weight, bias) = (Init::linear(inputs, gain), Init::linear(inputs, gain));
            let name = format!("{prefix}.{name}");
            Linear::new(list, &name, [inputs, outputs], weight, Some(bias))
        };
        let fc1 = linear("fc1", embed_dim, ffn_dim);
        let fc2 = linear("fc2", ffn_dim, embed_dim);
        Self {
            fc1,
            norm: config
                .norm_eps
                .map(|eps| LayerNorm::new(list, &format!("{prefix}.ffn_layernorm"), ffn_dim, eps)),
            fc2,
            activation: config.activation,
            dropout: config.dropout,
            hidden: ffn_dim,
            place,
        }
    }

    /// Records `y = network(x)`, plus `scale * residual` if a residual is given.
    ///
    /// # Errors
    /// The errors of leasing and of the operations.
    pub fn forward(
        &self,
        recorder: &mut Recorder,
        weights: &Parameters,
        step: Option<StepSeed>,
        x: Matrix<'_>,
        residual: Option<(Matrix<'_>, f32)>,
        y: Matrix<'_>,
    ) -> Result<()> {
        let dropout = dropout_at(self.dropout, step, self.place)?;
        for rows in self.chunks(x) {
            let shape = [rows.len(), self.hidden];
            let x = x.slice(rows.clone())?;
            let mut hidden = recorder.empty("ffn hidden", &shape, x.dtype())?;
            self.fc1
                .product(weights, x)
                .with_activation(self.activation)
                .write(recorder, hidden.matrix())?;
            if dropout.is_some() {
                let kept = recorder.empty("ffn hidden", &shape, x.dtype())?;
                ScaledAdd::new(hidden.matrix(), 1.0)
                    .with_dropout(
                        dropout,
                        StepSeed::first_element(step, rows.start, self.hidden),
                    )
                    .write(recorder, kept.matrix())?;
                hidden = kept;
            }
            if let Some(norm) = &self.norm {
                let normal = recorder.empty("ffn hidden", &shape, x.dtype())?;
                norm.forward(recorder, weights, hidden.matrix(), normal.matrix())?;
                hidden = normal;
            }
            let mut product = self.fc2.product(weights, hidden.matrix());
            if let Some((residual, scale)) = residual {
                product = product.with_residual(residual.slice(rows.clone())?, scale);
            }
            product.write(recorder, y.slice(rows.clone())?)?;
        }
        Ok(())
    }

    /// Records the backward. The gradient of `x` is written to `dx` or added to it; those of the parameters are added to `gradients`.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn backward(
        &self,
        recorder: &mut Recorder,
        [weights, gradients]: [&Parameters; 2],
        step: Option<StepSeed>,
        x: Matrix<'_>,
        dy: Matrix<'_>,
        (dx, accumulate): (Matrix<'_>, bool),
    ) -> Result<()> {
        let dropout = dropout_at(self.dropout, step, self.place)?;
        for rows in self.chunks(x) {
            let shape = [rows.len(), self.hidden];
            let (x, dy) = (x.slice(rows.clone())?, dy.slice(rows.clone())?);
            let mut empty = || recorder.empty("ffn hidden", &shape, DType::F32);
            let (before, active, gradient) = (empty()?, empty()?, empty()?);
            let (before, gradient) = (before.matrix(), gradient.matrix());
            self.fc1.forward(recorder, weights, x, before)?;
            activation(recorder, self.activation, before, active.matrix())?;
            let first = StepSeed::first_element(step, rows.start, self.hidden);
            let kept = match dropout {
                None => active,
                Some(_) => {
                    let kept = recorder.empty("ffn hidden", &shape, DType::F32)?;
                    ScaledAdd::new(active.matrix(), 1.0)
                        .with_dropout(dropout, first)
                        .write(recorder, kept.matrix())?;
                    kept
                }
            };
            let normal = match &self.norm {
                None => None,
                Some(norm) => {
                    let normal = recorder.empty("ffn hidden", &shape, DType::F32)?;
                    norm.forward(recorder, weights, kept.matrix(), normal.matrix())?;
                    Some(normal)
                }
            };
            let last = normal.as_ref().unwrap_or(&kept);
            self.fc2
                .backward_parameters(recorder, gradients, last.matrix(), dy)?;
            self.fc2
                .backward_input(recorder, weights, dy, (gradient, false))?;
            // `gradient` is the gradient of `last` here; in turn it becomes that of `kept`, of the activation, and of its input.
            let mut gradient = gradient;
            if let (Some(norm), Some(normal)) = (&self.norm, &normal) {
                let sets = [weights, gradients];
                norm.backward(
                    recorder,
                    sets,
                    kept.matrix(),
                    gradient,
                    (normal.matrix(), false),
                )?;
                gradient = normal.matrix();
            }
            let dropped = match dropout {
                None => None,
                Some(_) => Some(recorder.empty("ffn hidden", &shape, DType::F32)?),
            };
            if let Some(dropped) = &dropped {
                ScaledAdd::new(gradient, 1.0)
                    .with_dropout(dropout, first)
                    .write(recorder, dropped.matrix())?;
                gradient = dropped.matrix();
            }
            activation_backward(recorder, self.activation, before, gradient)?;
            self.fc1
                .backward_parameters(recorder, gradients, x, gradient)?;
            let dx = dx.slice(rows.clone())?;
            self.fc1
                .backward_input(recorder, weights, gradient, (dx, accumulate))?;
        }
        Ok(())
    }

    /// Rows whose inner activations are computed at a time.
    fn chunks(&self, x: Matrix<'_>) -> impl Iterator<Item = Range<usize>> + use<> {
        let rows = x.rows();
        let row_bytes = self.hidden * x.dtype().bytes() as usize;
        let step = (CHUNK_BYTES / row_bytes.max(1) / 64 * 64).max(64);
        (0..rows.div_ceil(step)).map(move |i| i * step..rows.min((i + 1) * step))
    }
}
