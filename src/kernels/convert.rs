//! Conversion between element types.

use super::activation::ElementwiseParams;
use super::params::LITTLE_WORK;
use super::{Access, Fields, KernelSpec, ParamsInfo};
use crate::device::{DeviceCaps, ElementFormat};

/// Converts elements from f32 to another type, or from that type to f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Convert {
    /// The type that is not f32.
    pub format: ElementFormat,
    /// Whether the result is f32; else the input is.
    pub widens: bool,
}

impl KernelSpec for Convert {
    fn name(&self) -> &'static str {
        "convert"
    }

    fn fields(&self) -> Fields {
        Fields::new()
            .with("format", self.format.name())
            .with("widens", self.widens)
    }

    fn bindings(&self) -> &'static [Access] {
        // x, out
        &[Access::Read, Access::ReadWrite]
    }

    fn params(&self) -> ParamsInfo {
        ParamsInfo::of::<ElementwiseParams>()
    }

    fn workgroup_work(&self, _: &[u8]) -> u64 {
        LITTLE_WORK
    }

    fn all(_: u32, format: ElementFormat, _: &DeviceCaps) -> Vec<Self> {
        // From f32 to f32 there is nothing to do.
        let both = [false, true].map(|widens| Self { format, widens });
        let half = both.into_iter().filter(|_| format != ElementFormat::F32);
        half.collect()
    }
}
