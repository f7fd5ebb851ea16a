//! Sums of partial results.

use super::params::{params, read};
use super::{Access, Fields, KernelSpec, ParamsInfo};
use crate::device::{DeviceCaps, ElementFormat};

params! {
    /// Parameters of `sum_partials.wgsl`, which says what each means.
    SumPartialsParams { count: u32, num_partials: u32, partials_skip: u32, stride: u32, out_skip: u32, accumulate: u32, first_workgroup: u32, grid_width: u32 }
}

/// Adds up partial results, always in the same order, so that every run has the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SumPartials;

impl KernelSpec for SumPartials {
    fn name(&self) -> &'static str {
        "sum_partials"
    }

    fn fields(&self) -> Fields {
        Fields::new()
    }

    fn bindings(&self) -> &'static [Access] {
        // partials, out
        &[Access::Read, Access::ReadWrite]
    }

    fn params(&self) -> ParamsInfo {
        ParamsInfo::of::<SumPartialsParams>()
    }

    fn workgroup_work(&self, params: &[u8]) -> u64 {
        64 * u64::from(read::<SumPartialsParams>(params).num_partials)
    }

    fn all(_: u32, _: ElementFormat, _: &DeviceCaps) -> Vec<Self> {
        vec![Self]
    }
}
