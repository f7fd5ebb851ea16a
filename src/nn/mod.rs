//! Layers with parameters, forward and backward.
//!
//! A layer is plain data: sizes, options and the [ids](ParameterId) of its parameters. The parameters themselves are
//! [`Parameters`], tensors that a model's [`ParameterList`] names: one set of weights, one of gradients, two of an
//! optimiser's moments, all of one layout, so that loading, saving, clipping and stepping are loops over a list.
//!
//! Forwards return what their backward needs besides its inputs; dropping it gives the buffers back, so inference keeps
//! nothing. Backwards *add* to the gradients of parameters: accumulation over batches is the same call again.
//!
//! Activations are (batch, token, element), f32 in training and f32, f16 or bf16 in inference. Layers see them as matrices of batch * token rows.

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
pub use parameters::{Init, ParameterId, ParameterList, ParameterSpec, Parameters};
pub(crate) use parameters::{PIECE_ELEMENTS, dropout_at};
