//! Scaled sums with dropout, element by element.

use super::params::{LITTLE_WORK, params};
use super::{Access, Fields, KernelSpec, ParamsInfo, VectorWidth};
use crate::device::{DeviceCaps, ElementFormat};

params! {
    /// Parameters of `scaled_add.wgsl`, which says what each means.
    ScaledAddParams { count: u32, x_skip: u32, y_skip: u32, out_skip: u32, x_scale: f32, y_scale: f32, mode: u32, drop_below: u32, seed_low: u32, seed_high: u32, first_low: u32, first_high: u32, first_workgroup: u32, grid_width: u32 }
}

impl ScaledAddParams {
    /// There is no second summand.
    pub const Y_NONE: u32 = 0;
    /// The second summand is the old content of the result.
    pub const Y_OUT: u32 = 1;
    /// The second summand has a binding of its own.
    pub const Y_BOUND: u32 = 2;
}

/// Scaled sums with dropout, element by element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ScaledAdd {
    /// How summands and result are stored, and how many elements a lane takes at a time.
    pub vector_width: VectorWidth,
}

impl KernelSpec for ScaledAdd {
    fn name(&self) -> &'static str {
        "scaled_add"
    }

    fn fields(&self) -> Fields {
        self.vector_width.fields()
    }

    fn bindings(&self) -> &'static [Access] {
        // x, y, out
        &[Access::Read, Access::Read, Access::ReadWrite]
    }

    fn params(&self) -> ParamsInfo {
        ParamsInfo::of::<ScaledAddParams>()
    }

    fn workgroup_work(&self, _: &[u8]) -> u64 {
        LITTLE_WORK
    }

    fn all(_: u32, format: ElementFormat, _: &DeviceCaps) -> Vec<Self> {
        VectorWidth::stored(format)
            .into_iter()
            .map(|vector_width| Self { vector_width })
            .collect()
    }
}
