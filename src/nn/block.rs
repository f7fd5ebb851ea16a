//! Residual blocks: a layer norm, a sublayer (attention or feed-forward network), and the residual around both.
//!
//! ```text
//! pre-norm     y = scale * x + dropout(sublayer(norm(x)))
//! post-norm    y = norm(scale * x + dropout(sublayer(x)))         scale > 1: DeepNorm (Wang et al. 2022)
//! ```
//! Encoder and decoder layers of every kind are lists of blocks.

use super::parameters::dropout_at;
use super::{
    FeedForward, LayerNorm, MultiheadAttention, MultiheadGradients, MultiheadInput, MultiheadSaved,
    Parameters, StepSeed,
};
use crate::config::AttentionShape;
use crate::device::DType;
use crate::distributed::SequenceShare;
use crate::error::{Error, Result};
use crate::ops::{Matrix, Positions, Rotations, ScaledAdd};
use crate::recorder::Recorder;
use crate::tensor::Tensor;

/// The sublayer of a block.
#[derive(Clone, Debug)]
pub enum Sublayer {
    /// Attention of the block's input to itself.
    SelfAttention(MultiheadAttention),
    /// Attention of the block's input to another sequence.
    CrossAttention(MultiheadAttention),
    /// A feed-forward network.
    FeedForward(FeedForward),
}

/// A residual block.
#[derive(Clone, Debug)]
pub struct Block {
    /// The layer norm.
    pub norm: LayerNorm,
    /// Whether the norm comes after the residual (post-norm) or before the sublayer (pre-norm).
    pub post_norm: bool,
    /// The sublayer.
    pub sublayer: Sublayer,
    /// Factor on the residual.
    pub residual_scale: f32,
    /// Probability that an element of the sublayer's output is dropped in training.
    pub dropout: f32,
    /// Number of the block's dropout in the model. Dropouts with different numbers are independent.
    pub place: u64,
}

/// What all blocks of a forward or backward have in common.
#[derive(Clone, Copy, Debug)]
pub struct Pass<'a> {
    /// The weights.
    pub weights: &'a Parameters,
    /// Batch and lengths of the sequences.
    pub shape: &'a AttentionShape,
    /// The other sequence, for blocks with cross attention.
    pub memory: Option<Memory<'a>>,
    /// Rotations and positions, for attention with xPos.
    pub positions: Option<(&'a Rotations, Positions)>,
    /// Seed of the dropouts of this training step; `None` for no dropout.
    pub step_seed: Option<u64>,
    /// This rank's share of the sequence, of which `shape` is then that part; `None` for whole sequences.
    pub share: Option<&'a SequenceShare>,
    /// Number of the first row among all that follow from the step's seed; of a share the number of the sequence's first.
    pub first_row: usize,
}

impl Pass<'_> {
    /// What dropouts follow from; `None` for no dropout.
    pub(crate) fn step(&self) -> Option<StepSeed> {
        self.step_seed.map(|seed| StepSeed {
            seed,
            first_row: self.first_row + self.share.map_or(0, |share| share.range().start),
        })
    }
}

/// The sequence that cross attention attends to.
#[derive(Clone, Copy, Debug)]
pub struct Memory<'a> {
    /// Activations of the sequence, (batch, tokens, E).
    pub tensor: &'a Tensor,
    /// Batch, and lengths of queries and keys.
    pub shape: &'a AttentionShape,
}

/// Tensors of a block's forward that its backward needs.
#[derive(Clone, Debug)]
pub struct BlockSaved {
    x: Tensor,
    /// The input of the norm, if the norm comes last.
    sum: Option<Tensor>,
    attention: Option<MultiheadSaved>,
}

impl BlockSaved {
    /// Tensors that the block's attention saved; `None` for a feed-forward block.
    pub fn attention(&self) -> Option<&MultiheadSaved> {
        self.attention.as_ref()
    }
}

impl Block {
    fn missing_memory() -> Error {
        Error::InvalidShape {
            what: "memory".into(),
            given: "none".to_owned(),
            need: "the encoder's output, for blocks that attend to it".to_owned(),
        }
    }

    /// Records the block. Activations are f32, f16 or bf16, all of the same type; with dropout they must be f32.
    ///
    /// # Errors
    /// [`Error::InvalidShape`] when cross attention has no memory; the errors of the operations.
    pub fn forward(
        &self,
        recorder: &mut Recorder,
        pass: &Pass<'_>,
        x: &Tensor,
    ) -> Result<(Tensor, BlockSaved)> {
        let dropout = dropout_at(self.dropout, pass.step(), self.place)?;
        let input = self.input(recorder, pass, x)?;
        let input = input.as_ref().unwrap_or(x).matrix();
        let sum = recorder.empty("activations", x.shape(), x.dtype())?;
        let residual = (x.matrix(), self.residual_scale);
        let attention = match dropout {
            // Without dropout, the last product of the sublayer adds the residual.
            None => self.sublayer(recorder, pass, input, Some(residual), sum.matrix())?,
            Some(_) => {
                let out = recorder.empty("activations", x.shape(), x.dtype())?;
                let attention = self.sublayer(recorder, pass, input, None, out.matrix())?;
                ScaledAdd::new(out.matrix(), 1.0)
                    .with_dropout(
                        dropout,
                        StepSeed::first_element(pass.step(), 0, row_width(x)),
                    )
                    .with_y(residual.0, residual.1)
                    .write(recorder, sum.matrix())?;
                attention
            }
        };
        let (y, sum) = match self.post_norm {
            false => (sum, None),
            true => {
                let y = recorder.empty("activations", x.shape(), x.dtype())?;
                self.norm
                    .forward(recorder, pass.weights, sum.matrix(), y.matrix())?;
                (y, Some(sum))
            }
        };
        let saved = BlockSaved {
            x: x.clone(),
            sum,
            attention,
        };
        Ok((y, saved))
    }

    /// Records the block without dropout and keeps nothing for a backward. The result has the bits of [`forward`](Self::forward),
    /// but at most five tensors of the size of `x` exist at a time instead of eight. With `watched`, also returns the [attention
    /// weights](crate::DilatedAttention::token_weights) of that token.
    ///
    /// # Errors
    /// As [`forward`](Self::forward); [`Error::InvalidShape`] when there is no such token.
    pub fn infer(
        &self,
        recorder: &mut Recorder,
        pass: &Pass<'_>,
        x: &Tensor,
        watched: Option<usize>,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let normal = self.input(recorder, pass, x)?;
        let input = normal.as_ref().unwrap_or(x).matrix();
        match &self.sublayer {
            Sublayer::FeedForward(network) => {
                let residual = Some((x.matrix(), self.residual_scale));
                let sum = recorder.empty("activations", x.shape(), x.dtype())?;
                network.forward(recorder, pass.weights, None, input, residual, sum.matrix())?;
                drop(normal);
                Ok((self.after_sum(recorder, pass, sum)?, None))
            }
            Sublayer::SelfAttention(attention) | Sublayer::CrossAttention(attention) => {
                let input = match &self.sublayer {
                    Sublayer::CrossAttention(_) => cross_input(pass, input)?,
                    _ => self_input(pass, input),
                };
                let shape = &input.shape.clone();
                let ([q, k, v], _) = attention.project_all(recorder, pass.weights, &input)?;
                drop(normal);
                let attention_of = attention.attention();
                let inputs = [&q, &k, &v];
                let mixed = attention_of.record_forward_in(recorder, pass.share, shape, inputs)?;
                drop(v);
                let weights = match watched {
                    None => None,
                    Some(token) => {
                        let state = &mixed.softmax_state;
                        let weights = attention_of.record_token_weights(
                            recorder,
                            shape,
                            [&q, &k],
                            state,
                            token,
                        )?;
                        Some(weights)
                    }
                };
                drop((q, k));
                let y = self.after_attention(recorder, pass, attention, x, &mixed.out)?;
                Ok((y, weights))
            }
        }
    }

    /// Records the output of a block with attention over its input `x`, without dropout. `attended` is the output of the attention
    /// between the projections.
    pub(crate) fn after_attention(
        &self,
        recorder: &mut Recorder,
        pass: &Pass<'_>,
        attention: &MultiheadAttention,
        x: &Tensor,
        attended: &Tensor,
    ) -> Result<Tensor> {
        let residual = Some((x.matrix(), self.residual_scale));
        let sum = recorder.empty("activations", x.shape(), x.dtype())?;
        attention.project_out(recorder, pass.weights, attended, residual, sum.matrix())?;
        self.after_sum(recorder, pass, sum)
    }

    /// Records the norm that comes last, if one does.
    fn after_sum(&self, recorder: &mut Recorder, pass: &Pass<'_>, sum: Tensor) -> Result<Tensor> {
        if !self.post_norm {
            return Ok(sum);
        }
        let y = recorder.empty("activations", sum.shape(), sum.dtype())?;
        self.norm
            .forward(recorder, pass.weights, sum.matrix(), y.matrix())?;
        Ok(y)
    }

    /// The normalised input of the sublayer; `None` if its input is `x` itself.
    pub(crate) fn input(
        &self,
        recorder: &mut Recorder,
        pass: &Pass<'_>,
        x: &Tensor,
    ) -> Result<Option<Tensor>> {
        if self.post_norm {
            return Ok(None);
        }
        let normal = recorder.empty("activations", x.shape(), x.dtype())?;
        self.norm
            .forward(recorder, pass.weights, x.matrix(), normal.matrix())?;
        Ok(Some(normal))
    }

    fn sublayer(
        &self,
        recorder: &mut Recorder,
        pass: &Pass<'_>,
        x: Matrix<'_>,
        residual: Option<(Matrix<'_>, f32)>,
        y: Matrix<'_>,
    ) -> Result<Option<MultiheadSaved>> {
        match &self.sublayer {
            Sublayer::FeedForward(network) => {
                network.forward(recorder, pass.weights, pass.step(), x, residual, y)?;
                Ok(None)
            }
            Sublayer::SelfAttention(attention) => {
                let input = self_input(pass, x);
                let saved = attention.forward(recorder, pass.weights, &input, residual, y)?;
                Ok(Some(saved))
            }
            Sublayer::CrossAttention(attention) => {
                let input = cross_input(pass, x)?;
                let saved = attention.forward(recorder, pass.weights, &input, residual, y)?;
                Ok(Some(saved))
            }
        }
    }

    /// Records the backward of the block and returns the gradient of its input. `dy` is the gradient of the output; it may be
    /// overwritten. The gradients of the parameters are added to `gradients`, that of the memory to `dmemory`.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn backward(
        &self,
        recorder: &mut Recorder,
        pass: &Pass<'_>,
        gradients: &Parameters,
        saved: &BlockSaved,
        dy: Tensor,
        dmemory: Option<&Tensor>,
    ) -> Result<Tensor> {
        let x = &saved.x;
        let sets = [pass.weights, gradients];
        let like_x =
            |recorder: &mut Recorder| recorder.empty("d activations", x.shape(), DType::F32);
        // Gradient of scale * x + dropout(sublayer).
        let dsum = match &saved.sum {
            None => dy,
            Some(sum) => {
                let dsum = like_x(recorder)?;
                let to = (dsum.matrix(), false);
                self.norm
                    .backward(recorder, sets, sum.matrix(), dy.matrix(), to)?;
                dsum
            }
        };
        let dropout = dropout_at(self.dropout, pass.step(), self.place)?;
        let dropped = match dropout {
            None => None,
            Some(_) => {
                let dropped = like_x(recorder)?;
                ScaledAdd::new(dsum.matrix(), 1.0)
                    .with_dropout(
                        dropout,
                        StepSeed::first_element(pass.step(), 0, row_width(x)),
                    )
                    .write(recorder, dropped.matrix())?;
                Some(dropped)
            }
        };
        let dout = dropped.as_ref().unwrap_or(&dsum).matrix();
        let scaled = |recorder: &mut Recorder, like: Tensor| -> Result<Tensor> {
            ScaledAdd::new(dsum.matrix(), self.residual_scale).write(recorder, like.matrix())?;
            Ok(like)
        };
        let Some(input) = self.input(recorder, pass, x)? else {
            let dx = like_x(recorder)?;
            let dx = scaled(recorder, dx)?;
            let to = (dx.matrix(), true);
            self.sublayer_backward(
                recorder,
                pass,
                gradients,
                saved,
                (x.matrix(), dout),
                to,
                dmemory,
            )?;
            return Ok(dx);
        };
        let dinput = like_x(recorder)?;
        let to = (dinput.matrix(), false);
        self.sublayer_backward(
            recorder,
            pass,
            gradients,
            saved,
            (input.matrix(), dout),
            to,
            dmemory,
        )?;
        let dx = match self.residual_scale {
            1.0 => dsum,
            // The sublayer's input is not needed any more, so its buffer takes the result.
            _ => scaled(recorder, input)?,
        };
        let to = (dx.matrix(), true);
        self.norm
            .backward(recorder, sets, x.matrix(), dinput.matrix(), to)?;
        Ok(dx)
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "one call each for three kinds of sublayers"
    )]
    fn sublayer_backward(
        &self,
        recorder: &mut Recorder,
        pass: &Pass<'_>,
        gradients: &Parameters,
        saved: &BlockSaved,
        (x, dy): (Matrix<'_>, Matrix<'_>),
        dx: (Matrix<'_>, bool),
        dmemory: Option<&Tensor>,
    ) -> Result<()> {
        let sets = [pass.weights, gradients];
        match (&self.sublayer, &saved.attention) {
            (Sublayer::FeedForward(network), _) => {
                network.backward(recorder, sets, pass.step(), x, dy, dx)
            }
            (Sublayer::SelfAttention(attention), Some(saved)) => {
                let input = self_input(pass, x);
                let to = MultiheadGradients {
                    dx: dx.0,
                    accumulate: dx.1,
                    dmemory: None,
                };
                attention.backward(recorder, sets, &input, saved, dy, to)
            }
            (Sublayer::CrossAttention(attention), Some(saved)) => {
                let input = cross_input(pass, x)?;
                let dmemory = dmemory.ok_or_else(Self::missing_memory)?;
                let to = MultiheadGradients {
                    dx: dx.0,
                    accumulate: dx.1,
                    dmemory: Some(dmemory.matrix()),
                };
                attention.backward(recorder, sets, &input, saved, dy, to)
            }
            (_, None) => Err(Error::ParameterMismatch {
                what: "saved activations",
            }),
        }
    }
}

fn self_input<'a>(pass: &Pass<'a>, x: Matrix<'a>) -> MultiheadInput<'a> {
    MultiheadInput {
        shape: pass.shape,
        x,
        memory: x,
        positions: pass.positions,
        share: pass.share,
    }
}

/// Elements of a row of activations.
fn row_width(x: &Tensor) -> usize {
    x.shape().last().copied().unwrap_or(0)
}

fn cross_input<'a>(pass: &Pass<'a>, x: Matrix<'a>) -> Result<MultiheadInput<'a>> {
    let memory = pass.memory.ok_or_else(Block::missing_memory)?;
    Ok(MultiheadInput {
        shape: memory.shape,
        x,
        memory: memory.tensor.matrix(),
        positions: None,
        share: pass.share,
    })
}
