//! What to compute: the options of dilated attention, as plain data.
//!
//! A [`DilatedAttentionConfig`] is always valid: it has at least one branch, all segment lengths and dilation rates are at least 1,
//! and the head size is supported. Plans, the reference and kernels rely on this. Batch size, lengths, and keys of another sequence
//! belong to a call: to its tensors and [`CallOptions`]; or, for plans and models, to an [`AttentionShape`].
//!
//! The semantics are those of LongNet (Ding et al. 2023) as implemented in microsoft/torchscale
//! (`torchscale/component/dilated_attention.py`). Partitioned heads are those of dilated-attention-pytorch.

mod attention;
mod call;
mod shape;
#[cfg(test)]
mod tests;

pub use attention::{
    Branch, DilatedAttentionConfig, HeadOffsets, Heads, Mask, MixGradient, OutputRows, Padding,
};
pub use call::CallOptions;
pub use shape::AttentionShape;

/// Largest supported head size, in elements.
pub const MAX_HEAD_DIM: usize = 256;

/// Longest sequence, in tokens: token and row indices, and sums of two of them, fit in the 32 bits a shader has.
pub const MAX_TOKENS: usize = (1 << 31) - 1;

/// A number that a configuration or a shape has checked, in the 32 bits that plans and shaders count in. A segment may be longer:
/// it is cut to the sequence.
pub(crate) fn in_u32(checked: usize) -> u32 {
    u32::try_from(checked).unwrap_or(u32::MAX)
}

/// What to do with sequences of different lengths.
pub(crate) const UNEQUAL_LENGTHS: &str = "items of different lengths are padded to the longest, and \
     with_valid_lens (of CallOptions, of AttentionShape) tells their own";
