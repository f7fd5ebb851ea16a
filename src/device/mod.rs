//! Properties of a device that plans and kernels depend on: limits, the processor that runs the shaders, kernel tiers, element
//! formats. Plain data, so that plans can be made without a device.

pub(crate) mod caps;
pub(crate) mod cooperative_matrix;
pub(crate) mod element_format;
pub(crate) mod limits;
mod range;
mod tier;

pub use crate::element::{DType, Element};
pub use caps::DeviceCaps;
pub use cooperative_matrix::NoCooperativeMatrix;
pub use tier::KernelTier;

pub(crate) use caps::Processor;
pub(crate) use cooperative_matrix::CooperativeMatrix;
pub(crate) use element_format::ElementFormat;
pub(crate) use range::{ByteRange, word_windows};
