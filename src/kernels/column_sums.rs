//! Column sums over blocks of rows.

use super::params::{params, read};
use super::{Access, Fields, KernelSpec, ParamsInfo};
use crate::device::{DeviceCaps, ElementFormat};

params! {
    /// Parameters of `column_sums.wgsl`, which says what each means.
    ColumnSumsParams { rows: u32, width: u32, x_skip: u32, dy_skip: u32, stats_skip: u32, partials_skip: u32, block: u32, tiles_x: u32, first_workgroup: u32, grid_width: u32 }
}

/// Sums each column over blocks of rows, for the gradients of biases and of the weights of norms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ColumnSums {
    /// Sums the products with the normalised input, too.
    pub normalised: bool,
}

impl KernelSpec for ColumnSums {
    fn name(&self) -> &'static str {
        "column_sums"
    }

    fn fields(&self) -> Fields {
        Fields::new().with("normalised", self.normalised)
    }

    fn bindings(&self) -> &'static [Access] {
        // x, stats, dy, partials
        &[Access::Read, Access::Read, Access::Read, Access::ReadWrite]
    }

    fn params(&self) -> ParamsInfo {
        ParamsInfo::of::<ColumnSumsParams>()
    }

    fn workgroup_work(&self, params: &[u8]) -> u64 {
        64 * u64::from(read::<ColumnSumsParams>(params).block)
    }

    fn all(_: u32, _: ElementFormat, _: &DeviceCaps) -> Vec<Self> {
        [false, true].map(|normalised| Self { normalised }).into()
    }
}
