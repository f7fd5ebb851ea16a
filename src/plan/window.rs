//! Windows: byte ranges of tensors that fit in one binding.
//!
//! A tensor may be larger than a binding may be (128 MiB by default). A [`TokenWindow`] is a range of its tokens. It begins a
//! little earlier if necessary, at an offset that the device allows. Kernels get the first token and the number of elements before
//! it in the binding, and compute indices from these.

use crate::config::DilatedAttentionConfig;
use crate::device::{ByteRange, DeviceCaps, ElementFormat};

/// Layout of a tensor whose rows are tokens: token `p` of item `b` is row `b * seq_len + p`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct RowLayout {
    /// Bytes of one row.
    pub row_bytes: u64,
    /// Bytes of one element as kernels index it: 16 for a vec4 of f32, 8 for a vec4 of f16 or a vec2 of f32.
    pub element_bytes: u64,
}

/// A range of rows of a tensor, as it is bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TokenWindow {
    /// The byte range that is bound.
    pub bytes: ByteRange,
    /// Elements of the binding before the first row of the window.
    pub skip: u32,
}

impl RowLayout {
    /// Layout of activations, which kernels index in vec4.
    pub(crate) fn of_activations(config: &DilatedAttentionConfig, format: ElementFormat) -> Self {
        let element_bytes = u64::from(format.bytes());
        Self {
            row_bytes: config.embed_dim() as u64 * element_bytes,
            element_bytes: 4 * element_bytes,
        }
    }

    /// Layout of the softmax state: a vec2 of f32 for each token and head.
    pub(crate) fn of_state(config: &DilatedAttentionConfig) -> Self {
        Self::per_head(config, 8)
    }

    /// Layout of the backward's row statistics: a vec4 of f32 for each token and head.
    pub(crate) fn of_row_stats(config: &DilatedAttentionConfig) -> Self {
        Self::per_head(config, 16)
    }

    fn per_head(config: &DilatedAttentionConfig, bytes: u64) -> Self {
        Self {
            row_bytes: config.num_heads() as u64 * bytes,
            element_bytes: bytes,
        }
    }

    /// The window of rows `begin .. end`; `None` if it is larger than a binding may be.
    pub fn window(&self, begin: u64, end: u64, caps: &DeviceCaps) -> Option<TokenWindow> {
        let first = begin * self.row_bytes;
        // Aligned to whole elements, too, so that `skip` is a whole number for any size of rows.
        let alignment = caps.storage_offset_alignment.max(self.element_bytes);
        let offset = first / alignment * alignment;
        let size = end * self.row_bytes - offset;
        (size <= caps.max_binding_bytes).then_some(TokenWindow {
            bytes: ByteRange { offset, size },
            // Fits in 32 bits: less than the alignment.
            skip: ((first - offset) / self.element_bytes) as u32,
        })
    }

    /// Number of rows that fit in a window, wherever it begins.
    pub fn max_rows(&self, caps: &DeviceCaps) -> u64 {
        let alignment = caps.storage_offset_alignment.max(self.element_bytes);
        let bytes = caps.max_binding_bytes.saturating_sub(alignment);
        bytes.checked_div(self.row_bytes).unwrap_or(u64::MAX)
    }
}
