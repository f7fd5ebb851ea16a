//! Windows: byte ranges of tensors that fit in one binding.
//!
//! A tensor may be larger than a binding may be (128 MiB by default), and than a buffer: then it lies in several *parts*, each of
//! the same number of rows. A [`TokenWindow`] is a range of its tokens in one part. It begins a little earlier if necessary, at an
//! offset that the device allows. Kernels get the first token and the number of elements before it in the binding, and compute
//! indices from these.

use crate::config::DilatedAttentionConfig;
use crate::device::{ByteRange, DeviceCaps, ElementFormat};

/// Layout of a tensor whose rows are tokens: token `p` of item `b` is row `b * seq_len + p`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct RowLayout {
    /// Bytes of one row.
    pub row_bytes: u64,
    /// Bytes of one element as kernels index it: 16 for a vec4 of f32, 8 for a vec4 of f16 or a vec2 of f32.
    pub element_bytes: u64,
    /// Bytes of each part but the last: whole rows.
    pub part_bytes: u64,
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
    pub(crate) fn of_activations(
        config: &DilatedAttentionConfig,
        format: ElementFormat,
        caps: &DeviceCaps,
    ) -> Self {
        let element_bytes = u64::from(format.bytes());
        Self::new(
            config.embed_dim() as u64 * element_bytes,
            4 * element_bytes,
            caps,
        )
    }

    fn new(row_bytes: u64, element_bytes: u64, caps: &DeviceCaps) -> Self {
        // Where a buffer does not hold a row, no tensor can be made.
        let part_bytes = match caps.part_bytes(row_bytes) {
            0 => u64::MAX,
            part_bytes => part_bytes,
        };
        Self {
            row_bytes,
            element_bytes,
            part_bytes,
        }
    }

    /// Layout of the softmax state: a vec2 of f32 for each token and head.
    pub(crate) fn of_state(config: &DilatedAttentionConfig, caps: &DeviceCaps) -> Self {
        Self::per_head(config, 8, caps)
    }

    /// Layout of the backward's row statistics: a vec4 of f32 for each token and head.
    pub(crate) fn of_row_stats(config: &DilatedAttentionConfig, caps: &DeviceCaps) -> Self {
        Self::per_head(config, 16, caps)
    }

    fn per_head(config: &DilatedAttentionConfig, bytes: u64, caps: &DeviceCaps) -> Self {
        Self::new(config.num_heads() as u64 * bytes, bytes, caps)
    }

    /// First byte of the part that holds byte `at`.
    fn part_begin(&self, at: u64) -> u64 {
        at / self.part_bytes * self.part_bytes
    }

    /// Where a window begins whose first row begins at byte `first`.
    fn offset(&self, first: u64, caps: &DeviceCaps) -> u64 {
        let part = self.part_begin(first);
        // Aligned to whole elements, too, so that `skip` is a whole number for any size of rows.
        let alignment = caps.storage_offset_alignment.max(self.element_bytes);
        part + (first - part) / alignment * alignment
    }

    /// The window of rows `begin .. end`; `None` if it is larger than a binding may be, or lies in several parts.
    pub fn window(&self, begin: u64, end: u64, caps: &DeviceCaps) -> Option<TokenWindow> {
        let first = begin * self.row_bytes;
        let offset = self.offset(first, caps);
        let size = end * self.row_bytes - offset;
        let fits = size <= caps.max_binding_bytes && self.is_in_one_part(begin, end);
        fits.then_some(TokenWindow {
            bytes: ByteRange { offset, size },
            // Fits in 32 bits: less than the alignment.
            skip: ((first - offset) / self.element_bytes) as u32,
        })
    }

    /// Whether the rows `begin .. end` lie in one part.
    pub fn is_in_one_part(&self, begin: u64, end: u64) -> bool {
        let part = self.part_begin(begin * self.row_bytes);
        end * self.row_bytes - part <= self.part_bytes
    }

    /// Number of rows from `begin` on that one window covers, in a tensor without end.
    pub fn rows_from(&self, begin: u64, caps: &DeviceCaps) -> u64 {
        let first = begin.saturating_mul(self.row_bytes);
        let offset = self.offset(first, caps);
        let end = offset
            .saturating_add(caps.max_binding_bytes)
            .min(self.part_begin(first).saturating_add(self.part_bytes));
        end.saturating_sub(first)
            .checked_div(self.row_bytes)
            .unwrap_or(u64::MAX)
    }

    /// Number of rows that fit in a window, wherever in a part it begins.
    pub fn max_rows(&self, caps: &DeviceCaps) -> u64 {
        let alignment = caps.storage_offset_alignment.max(self.element_bytes);
        let bytes = caps.max_binding_bytes.saturating_sub(alignment);
        bytes.checked_div(self.row_bytes).unwrap_or(u64::MAX)
    }
}

/// Windows of the first `keys` keys of a branch, each covered by one binding of each tensor. Keys are `rate` rows apart; of each
/// tensor its layout and the row of the first key are given. Without keys there is an empty window, for zero keys. `None` if a
/// binding does not cover one key.
pub(crate) fn key_windows(
    keys: u32,
    rate: u32,
    tensors: &[(RowLayout, u64)],
    caps: &DeviceCaps,
) -> Option<Vec<(u32, u32)>> {
    let mut windows = Vec::new();
    let mut begin = 0;
    while begin < keys {
        let covered = tensors.iter().map(|(layout, first)| {
            let row = first + u64::from(begin) * u64::from(rate);
            layout.rows_from(row, caps).div_ceil(rate.into())
        });
        let covered = covered.min().unwrap_or(u64::MAX);
        let covered = u32::try_from(covered).unwrap_or(u32::MAX);
        if covered == 0 {
            return None;
        }
        let end = keys.min(begin.saturating_add(covered));
        windows.push((begin, end));
        begin = end;
    }
    if windows.is_empty() {
        windows.push((0, 0));
    }
    Some(windows)
}
