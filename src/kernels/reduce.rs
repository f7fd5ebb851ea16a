//! Sums over many elements, or over their squares.

use super::params::params;
use super::{Access, Fields, KernelSpec, ParamsInfo};
use crate::device::{DeviceCaps, ElementFormat};

params! {
    /// Parameters of `reduce.wgsl`, which says what each means.
    ReduceParams { count: u32, x_skip: u32, out_skip: u32, first_workgroup: u32, grid_width: u32 }
}

/// Elements that one workgroup adds up.
pub(crate) const BLOCK: u64 = 4096;

/// Sums of blocks of elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Reduce {
    /// Whether the squares of the elements are summed.
    pub squares: bool,
}

impl KernelSpec for Reduce {
    fn name(&self) -> &'static str {
        "reduce"
    }

    fn fields(&self) -> Fields {
        Fields::new().with("squares", self.squares)
    }

    fn bindings(&self) -> &'static [Access] {
        // x, sums
        &[Access::Read, Access::ReadWrite]
    }

    fn params(&self) -> ParamsInfo {
        ParamsInfo::of::<ReduceParams>()
    }

    fn workgroup_work(&self, _: &[u8]) -> u64 {
        BLOCK
    }

    fn all(_: u32, _: ElementFormat, _: &DeviceCaps) -> Vec<Self> {
        [false, true].map(|squares| Self { squares }).into()
    }
}
