//! Byte ranges of tensors that one binding may cover.
//!
//! A tensor may be larger than one binding (128 MiB by default). A [`TokenWindow`] is a range of its tokens, widened
//! downwards so that it starts at an offset the device allows; kernels get the first token and the number of elements
//! skipped, and compute indices from there.

use crate::config::DilatedAttentionConfig;
use crate::device::{ByteRange, DeviceCaps, ElementFormat};

/// Rows of one tensor as kernels see them: token `p` of item `b` is row `b * seq_len + p`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct RowLayout {
    /// Bytes of one row.
    pub row_bytes: u64,
    /// Bytes of one element as the kernel indexes it (16 for a vec4 of f32, 8 for one of f16 or for a pair of f32).
    pub element_bytes: u64,
}

/// A window of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TokenWindow {
    /// What is bound.
    pub bytes: ByteRange,
    /// Elements of the binding before the first row of the window.
    pub skip: u32,
}

impl RowLayout {
    /// Rows of activations, which kernels index in vec4.
    pub(crate) fn of_activations(config: &DilatedAttentionConfig, format: ElementFormat) -> Self {
        let element_bytes = u64::from(format.bytes());
        Self {
            row_bytes: config.embed_dim() as u64 * element_bytes,
            element_bytes: 4 * element_bytes,
        }
    }

    /// Rows of the softmax state: a pair of f32 for each head.
    pub(crate) fn of_state(config: &DilatedAttentionConfig) -> Self {
        Self::per_head(config, 8)
    }

    /// The backward's row statistics: four f32 for each head.
    pub(crate) fn of_row_stats(config: &DilatedAttentionConfig) -> Self {
        Self::per_head(config, 16)
    }

    fn per_head(config: &DilatedAttentionConfig, bytes: u64) -> Self {
        Self {
            row_bytes: config.num_heads() as u64 * bytes,
            element_bytes: bytes,
        }
    }

    /// The window of rows `begin .. end`, or `None` when one binding cannot cover it.
    pub fn window(&self, begin: u64, end: u64, caps: &DeviceCaps) -> Option<TokenWindow> {
        let first = begin * self.row_bytes;
        // Aligning to whole elements too keeps `skip` exact for any row size.
        let alignment = caps.storage_offset_alignment.max(self.element_bytes);
        let offset = first / alignment * alignment;
        let size = end * self.row_bytes - offset;
        (size <= caps.max_binding_bytes).then_some(TokenWindow {
            bytes: ByteRange { offset, size },
            // At most the alignment, divided.
            skip: ((first - offset) / self.element_bytes) as u32,
        })
    }

    /// Rows that fit in one window wherever it begins.
    pub fn max_rows(&self, caps: &DeviceCaps) -> u64 {
        let alignment = caps.storage_offset_alignment.max(self.element_bytes);
        let bytes = caps.max_binding_bytes.saturating_sub(alignment);
        bytes.checked_div(self.row_bytes).unwrap_or(u64::MAX)
    }
}
