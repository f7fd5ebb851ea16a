//! Plans without a GPU.

mod backward;
#[cfg(not(target_arch = "wasm32"))]
mod blocks;
mod branch;
mod forward;
#[cfg(feature = "models")]
mod needs;
mod packed;
mod parts;
#[cfg(feature = "models")]
mod step;

use super::window::TokenWindow;
use crate::device::DeviceCaps;

/// A window of a tensor whose rows have `row_bytes` (`None`: one that lies in one buffer) is one that a binding covers: it begins
/// where the device allows, and ends in the same part.
fn check_window(window: TokenWindow, row_bytes: Option<u64>, caps: &DeviceCaps) {
    let part_bytes = row_bytes.map_or(u64::MAX, |bytes| caps.part_bytes(bytes));
    let at = window.bytes.offset % part_bytes;
    assert_eq!(at % caps.storage_offset_alignment, 0);
    assert!(window.bytes.size <= caps.max_binding_bytes);
    assert!(at + window.bytes.size <= part_bytes, "in two parts");
}
