//! Properties of a device that plans and kernels depend on: limits, the processor that runs the shaders, kernel tiers, element
//! formats. Plain data, so that plans can be made without a device.

mod caps;
mod cooperative_matrix;
mod element_format;
mod limits;
mod range;
mod tier;

pub use crate::element::{DType, Element};
pub use caps::{DeviceCaps, Processor};
pub use cooperative_matrix::{CooperativeMatrix, NoCooperativeMatrix};
pub use element_format::ElementFormat;
pub use limits::{MOST_INVOCATIONS, WORKGROUP_MEMORY_BYTES};
pub use range::ByteRange;
pub(crate) use range::word_windows;
pub use tier::KernelTier;
