//! The buffers that a recording leases.

use super::window::RowLayout;
use crate::device::DeviceCaps;
use crate::error::{PoolError, Result};
use crate::pool::size_class::class_bytes;
use crate::pool::{BufferRequest, PARAMS_USAGE, STAGING_USAGE, STORAGE_USAGE};

/// Uploads are cut into staging chunks of at most this many bytes, so that the pool can reuse the chunks of one upload for any other.
const MAX_STAGING_BYTES: u64 = 4 << 20;

/// Smallest staging chunk.
const MIN_STAGING_BYTES: u64 = 64 << 10;

/// Bytes of the staging chunk that a recording takes when `bytes` are left to stage.
pub(crate) fn staging_bytes(bytes: u64) -> u64 {
    bytes
        .checked_next_power_of_two()
        .unwrap_or(MAX_STAGING_BYTES)
        .clamp(MIN_STAGING_BYTES, MAX_STAGING_BYTES)
}

/// A buffer that a recording leases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PlannedBuffer {
    /// Label of the lease.
    pub label: &'static str,
    pub usage: wgpu::BufferUsages,
    /// Bytes asked for.
    pub requested_bytes: u64,
    /// Bytes of the size class: the size of the buffer that the pool creates for it.
    pub class_bytes: u64,
}

impl PlannedBuffer {
    /// The buffers of a tensor of `num_rows` rows: its parts.
    pub(super) fn parts(
        label: &'static str,
        num_rows: u64,
        layout: &RowLayout,
        caps: &DeviceCaps,
    ) -> Vec<Self> {
        let bytes = num_rows * layout.row_bytes;
        let whole = std::iter::repeat_n(layout.part_bytes, (bytes / layout.part_bytes) as usize);
        let rest = Some(bytes % layout.part_bytes).filter(|rest| *rest > 0 || bytes == 0);
        let parts = whole.chain(rest);
        parts.map(|part| Self::storage(label, part, caps)).collect()
    }

    /// A buffer that kernels read and write.
    pub(crate) fn storage(label: &'static str, bytes: u64, caps: &DeviceCaps) -> Self {
        Self::new(label, STORAGE_USAGE, bytes, caps)
    }

    fn new(label: &'static str, usage: wgpu::BufferUsages, bytes: u64, caps: &DeviceCaps) -> Self {
        let requested_bytes = bytes.max(4).next_multiple_of(4);
        Self {
            label,
            usage,
            requested_bytes,
            class_bytes: class_bytes(requested_bytes, caps.max_buffer_bytes),
        }
    }

    /// The lease.
    pub(super) fn request(&self) -> BufferRequest {
        BufferRequest {
            label: self.label.into(),
            bytes: self.requested_bytes,
            usage: self.usage,
            count: 1,
        }
    }
}

/// Checks that no buffer is larger than a device with `caps` allows.
///
/// # Errors
/// [`PoolError::BufferTooLarge`] with the first buffer that is too large.
pub(super) fn check_sizes(buffers: &[PlannedBuffer], caps: &DeviceCaps) -> Result<()> {
    let too_large = |buffer: &&PlannedBuffer| buffer.requested_bytes > caps.max_buffer_bytes;
    match buffers.iter().find(too_large) {
        None => Ok(()),
        Some(buffer) => Err(PoolError::BufferTooLarge {
            label: buffer.label.into(),
            requested_bytes: buffer.requested_bytes,
            limit_bytes: caps.max_buffer_bytes,
        }
        .into()),
    }
}

/// Sums the size of the uniform buffer that holds the parameters of all dispatches of a recording, each at an aligned offset.
pub(super) struct ParamsLayout<'a> {
    caps: &'a DeviceCaps,
    bytes: u64,
}

impl<'a> ParamsLayout<'a> {
    pub fn new(caps: &'a DeviceCaps) -> Self {
        Self { caps, bytes: 0 }
    }

    /// Adds a dispatch with parameters of type `P`.
    pub fn add<P>(&mut self) {
        let alignment = self.caps.uniform_offset_alignment;
        self.bytes = self.bytes.next_multiple_of(alignment) + size_of::<P>() as u64;
    }

    /// The uniform buffer and its staging chunks; no buffers without dispatches.
    pub fn buffers(self) -> Vec<PlannedBuffer> {
        if self.bytes == 0 {
            return Vec::new();
        }
        let planned = |label, usage, bytes| PlannedBuffer::new(label, usage, bytes, self.caps);
        let mut buffers = vec![planned("params", PARAMS_USAGE, self.bytes)];
        let mut left = self.bytes;
        while left > 0 {
            let chunk = staging_bytes(left);
            buffers.push(planned("staging", STAGING_USAGE, chunk));
            left = left.saturating_sub(chunk);
        }
        buffers
    }
}
