//! Byte ranges of buffers.

use super::caps::DeviceCaps;

/// A byte range of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ByteRange {
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub size: u64,
}

/// Cuts a byte range (both ends multiples of 4) of a tensor, whose parts have `part_bytes`, into pieces that a binding can cover. For
/// each piece: the range to bind, and the number of 32-bit words in it before the piece.
pub(crate) fn word_windows(
    range: ByteRange,
    part_bytes: u64,
    caps: &DeviceCaps,
) -> impl Iterator<Item = (ByteRange, u32)> {
    let alignment = caps.storage_offset_alignment;
    let max_bytes = caps.max_binding_bytes / alignment * alignment;
    let end = range.offset + range.size;
    let mut begin = range.offset;
    std::iter::from_fn(move || {
        let part = begin / part_bytes * part_bytes;
        let offset = part + (begin - part) / alignment * alignment;
        let stop = end
            .min(offset + max_bytes)
            .min(part.saturating_add(part_bytes));
        let size = stop.checked_sub(offset).filter(|_| begin < stop)?;
        // Fits in 32 bits: less than the alignment.
        let skip = ((begin - offset) / 4) as u32;
        begin = stop;
        Some((ByteRange { offset, size }, skip))
    })
}
