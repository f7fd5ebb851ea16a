//! The driver's pipeline cache, kept in a file between processes.
//!
//! It serves drivers that leave such a cache to the application, above all on Android. Most desktop drivers have a cache of their
//! own, and Mesa's software driver puts nothing into this one; there it costs nothing.

use std::path::{Path, PathBuf};

use crate::kernels::remembered::KernelOptions;
use crate::kernels::{Compiler, Pipelines, pipeline_cache};
use crate::watch::DeviceWatch;

/// First bytes of the file. A checksum of the data and the data follow.
const MAGIC: &[u8; 8] = b"dilattn1";

/// Files larger than this are not read.
const MAX_FILE_BYTES: u64 = 256 << 20;

/// The file for an adapter. wgpu itself rejects data of another driver or version.
pub(super) fn file(info: &wgpu::AdapterInfo, options: &KernelOptions) -> Option<PathBuf> {
    let key = wgpu::util::pipeline_cache_key(info)?;
    Some(options.cache.path()?.join(key))
}

/// Pipelines that use the driver's cache, filled from `file`. Without `file` or such a cache, pipelines without one.
pub(super) fn load(watch: &DeviceWatch, options: &KernelOptions, file: Option<&Path>) -> Pipelines {
    let data = file.and_then(|file| unpack(&read_file(file, MAX_FILE_BYTES)?).map(<[u8]>::to_vec));
    let cache = file.and_then(|_| pipeline_cache(watch, data.as_deref()));
    Pipelines::new(Compiler {
        trusted: options.trusted_shaders,
        cache,
    })
}

/// The content of a file; `None` if it is larger than `max_bytes` or cannot be read.
pub(super) fn read_file(file: &Path, max_bytes: u64) -> Option<Vec<u8>> {
    let metadata = std::fs::metadata(file).ok()?;
    // Checked before opening: opening a pipe would wait for its other end.
    if !metadata.is_file() || metadata.len() > max_bytes {
        return None;
    }
    std::fs::read(file).ok()
}

/// The data of a file; `None` if the file is damaged.
fn unpack(bytes: &[u8]) -> Option<&[u8]> {
    let (sum, data) = bytes.strip_prefix(MAGIC)?.split_first_chunk()?;
    (u64::from_le_bytes(*sum) == checksum(data)).then_some(data)
}

fn pack(data: &[u8]) -> Vec<u8> {
    [&MAGIC[..], &checksum(data).to_le_bytes(), data].concat()
}

/// FNV-1a hash (Fowler, Noll, Vo), 64 bits. It detects damage, not malice.
pub(super) fn checksum(data: &[u8]) -> u64 {
    data.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Writes the data of the driver's cache. Returns whether a file was written.
pub(super) fn save(file: &Path, data: &[u8]) -> bool {
    replace(file, &pack(data))
}

#[cfg(not(target_arch = "wasm32"))]
pub(super) fn replace(file: &Path, bytes: &[u8]) -> bool {
    crate::replacement::replace(file, bytes).is_ok()
}

#[cfg(target_arch = "wasm32")]
pub(super) fn replace(_: &Path, _: &[u8]) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_files_are_used() {
        let packed = pack(b"compiled");
        assert_eq!(unpack(&packed), Some(&b"compiled"[..]));
        assert_eq!(unpack(&pack(b"")), Some(&b""[..]));
        for len in 0..packed.len() {
            assert_eq!(unpack(&packed[..len]), None);
        }
        for place in 0..packed.len() {
            let mut damaged = packed.clone();
            damaged[place] ^= 1;
            assert_eq!(unpack(&damaged), None);
        }
        assert_eq!(unpack(&[&packed[..], b"x"].concat()), None);
    }
}
