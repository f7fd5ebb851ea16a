//! Layers with parameters, forward and backward.
//!
//! A layer is plain data: sizes, options and the [ids](ParameterId) of its parameters. The tensors are in [`Parameters`], a set
//! with one tensor for each entry of a model's [`ParameterList`]. Weights, gradients and the two moments of an optimiser are four
//! sets with the same layout, so that loading, saving, clipping and optimiser steps are loops over a list.
//!
//! A forward returns the tensors that its backward needs. Inference drops them, which gives their buffers back. A backward *adds*
//! to the gradients of parameters, so that gradients accumulate over several batches.
//!
//! Activations are (batch, token, element): f32 in training; f32, f16 or bf16 in inference. Layers treat them as matrices of batch
//! * token rows.

pub(crate) mod block;
mod feed_forward;
mod linear;
mod multihead;
mod norm;
mod parameters;

pub(crate) use block::{Block, BlockSaved, Memory, Pass, Sublayer};
pub use feed_forward::{FeedForward, FeedForwardConfig};
pub use linear::Linear;
pub use multihead::{
    MultiheadAttention, MultiheadAttentionConfig, MultiheadGradients, MultiheadInput,
    MultiheadSaved, ProjectionNorm,
};
pub use norm::LayerNorm;
pub use parameters::{Init, ParameterId, ParameterList, ParameterSpec, Parameters, StepSeed};
pub(crate) use parameters::{PIECE_ELEMENTS, dropout_at};
