//! The memory a recording takes beside its tensors.

/// What a planned buffer is for, which decides its usages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BufferRole {
    /// Kernels read and write it.
    Storage,
    /// Parameters of kernels.
    Params,
    /// The host writes it, the device copies from it.
    Staging,
}

/// Uploads are cut into staging chunks of at most this many bytes, so that chunks of any upload serve any other.
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
