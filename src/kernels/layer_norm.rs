//! Layer norm of rows (Ba, Kiros and Hinton 2016), and the gradient of its input.

use super::params::{params, read};
use super::{Access, Cell, Fields, KernelSpec, ParamsInfo};
use crate::device::{DeviceFacts, Storage};

params! {
    /// Parameters of `layer_norm_rows.wgsl`, which says what each means.
    LayerNormParams { rows: u32, width: u32, x_skip: u32, y_skip: u32, out_skip: u32, stats_skip: u32, gain_skip: u32, bias_skip: u32, accumulate: u32, eps: f32, first_workgroup: u32, grid_width: u32 }
}

/// Rows that one workgroup takes.
pub(crate) const ROWS: u64 = 8;

/// 8 rows, in about four operations an element.
fn work(params: &[u8]) -> u64 {
    4 * ROWS * u64::from(read::<LayerNormParams>(params).width)
}

/// Layer norm of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LayerNorm {
    /// How input and result are stored.
    pub cell: Cell,
}

impl KernelSpec for LayerNorm {
    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn fields(&self) -> Fields {
        self.cell.fields()
    }

    fn bindings(&self) -> &'static [Access] {
        // x, gain, bias, y
        &[Access::Read, Access::Read, Access::Read, Access::ReadWrite]
    }

    fn params(&self) -> ParamsInfo {
        ParamsInfo::of::<LayerNormParams>()
    }

    fn workgroup_work(&self, params: &[u8]) -> u64 {
        work(params)
    }

    fn all(_: u32, storage: Storage, _: &DeviceFacts) -> Vec<Self> {
        Cell::stored(storage)
            .into_iter()
            .map(|cell| Self { cell })
            .collect()
    }
}

/// Gradient of the input of a layer norm, in f32, and the rows' statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LayerNormBackward {
    /// How all of them are stored.
    pub cell: Cell,
}

impl KernelSpec for LayerNormBackward {
    fn name(&self) -> &'static str {
        "layer_norm_backward"
    }

    fn fields(&self) -> Fields {
        self.cell.fields()
    }

    fn bindings(&self) -> &'static [Access] {
        // x, gain, dy, dx, stats
        &[
            Access::Read,
            Access::Read,
            Access::Read,
            Access::ReadWrite,
            Access::ReadWrite,
        ]
    }

    fn params(&self) -> ParamsInfo {
        ParamsInfo::of::<LayerNormParams>()
    }

    fn workgroup_work(&self, params: &[u8]) -> u64 {
        work(params)
    }

    fn all(_: u32, storage: Storage, _: &DeviceFacts) -> Vec<Self> {
        Cell::stored(Storage::F32)
            .into_iter()
            .filter(|_| storage == Storage::F32)
            .map(|cell| Self { cell })
            .collect()
    }
}
