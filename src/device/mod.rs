//! What a device is, as far as plans and kernels depend on it: its limits, what executes the shaders, the types of elements.
//! Plain data, so that plans can be made without a device.

mod cooperative_matrix;
mod facts;
mod limits;
mod range;
mod storage;
mod tier;

pub use crate::element::{DType, Element};
pub use cooperative_matrix::{CooperativeMatrix, NoCooperativeMatrix};
pub use facts::{DeviceFacts, Processor};
pub use limits::{MOST_INVOCATIONS, WORKGROUP_MEMORY_BYTES};
pub use range::ByteRange;
pub(crate) use range::word_windows;
pub use storage::Storage;
pub use tier::KernelTier;
