//! The driver's cache of compiled kernels, kept in a file between processes.
//!
//! Most desktop drivers keep one of their own, and Mesa's software driver puts nothing into this one; it is for those that
//! leave it to the application (Android's above all), and costs nothing elsewhere.

use std::path::{Path, PathBuf};

use crate::kernels::remembered::KernelOptions;
use crate::kernels::{Compiler, Pipelines, pipeline_cache};
use crate::watch::DeviceWatch;

/// Before the data: what it is, and a checksum of it.
const MAGIC: &[u8; 8] = b"dilattn1";

/// More is not read.
const MAX_FILE_BYTES: u64 = 256 << 20;

/// The file for an adapter; drivers and their versions are told apart by wgpu.
pub(super) fn file(info: &wgpu::AdapterInfo, options: &KernelOptions) -> Option<PathBuf> {
    let key = wgpu::util::pipeline_cache_key(info)?;
    Some(options.cache.path()?.join(key))
}

/// Pipelines over the cache in `file`, if the device has such and the options name one.
pub(super) fn load(watch: &DeviceWatch, options: &KernelOptions, file: Option<&Path>) -> Pipelines {
    let data = file.and_then(|file| unpack(&read_file(file, MAX_FILE_BYTES)?).map(<[u8]>::to_vec));
    let cache = file.and_then(|_| pipeline_cache(watch, data.as_deref()));
    Pipelines::new(Compiler {
        trusted: options.trusted_shaders,
        cache,
    })
}

/// All of a file that is no larger than that.
pub(super) fn read_file(file: &Path, max_bytes: u64) -> Option<Vec<u8>> {
    let metadata = std::fs::metadata(file).ok()?;
    // Asked before it is opened: to open a pipe would wait for its other end.
    if !metadata.is_file() || metadata.len() > max_bytes {
        return None;
    }
    std::fs::read(file).ok()
}

/// The data in a file, if the file is whole.
fn unpack(bytes: &[u8]) -> Option<&[u8]> {
    let (sum, data) = bytes.strip_prefix(MAGIC)?.split_first_chunk()?;
    (u64::from_le_bytes(*sum) == checksum(data)).then_some(data)
}

fn pack(data: &[u8]) -> Vec<u8> {
    [&MAGIC[..], &checksum(data).to_le_bytes(), data].concat()
}

/// FNV-1a (Fowler, Noll, Vo), 64 bits: against damage, not against malice.
pub(super) fn checksum(data: &[u8]) -> u64 {
    data.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Writes what the driver's cache holds. Whether a file was written.
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
