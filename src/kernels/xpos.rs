//! Relative positions by rotation and scaling of pairs of elements (xPos).

use super::params::{LITTLE_WORK, params};
use super::{Access, Fields, KernelSpec, ParamsInfo};
use crate::device::{DeviceCaps, ElementFormat};

params! {
    /// Parameters of `xpos.wgsl`, which says what each means.
    XposParams { num_places: u32, num_heads: u32, quads: u32, seq_len: u32, first_row: u32, skip: u32, coarse_begin: u32, first_position: u32, block: u32, centre: u32, scale_per_position: f32, inverse: u32, first_workgroup: u32, grid_width: u32 }
}

/// Rotates and scales pairs of elements by their position (xPos), in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Xpos {
    /// Element format.
    pub format: ElementFormat,
}

impl KernelSpec for Xpos {
    fn name(&self) -> &'static str {
        "xpos"
    }

    fn fields(&self) -> Fields {
        Fields::new().with("format", self.format.name())
    }

    fn bindings(&self) -> &'static [Access] {
        // rotations, x
        &[Access::Read, Access::ReadWrite]
    }

    fn params(&self) -> ParamsInfo {
        ParamsInfo::of::<XposParams>()
    }

    fn workgroup_work(&self, _: &[u8]) -> u64 {
        LITTLE_WORK
    }

    fn all(_: u32, format: ElementFormat, _: &DeviceCaps) -> Vec<Self> {
        vec![Self { format }]
    }
}
