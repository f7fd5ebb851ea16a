//! RMS norm of rows (Zhang and Sennrich 2019), and the gradient of its input.

use super::params::{params, read};
use super::{Access, Cell, Fields, KernelSpec, ParamsInfo};
use crate::device::{DeviceFacts, Storage};

params! {
    /// Parameters of `rms_norm_rows.wgsl`, which says what each means.
    RmsNormParams { rows: u32, width: u32, x_skip: u32, y_skip: u32, out_skip: u32, stats_skip: u32, gain_skip: u32, accumulate: u32, eps: f32, first_workgroup: u32, grid_width: u32 }
}

/// Rows that one workgroup takes.
pub(crate) const ROWS: u64 = 8;

/// 8 rows, in about four operations an element.
fn work(params: &[u8]) -> u64 {
    4 * ROWS * u64::from(read::<RmsNormParams>(params).width)
}

/// RMS norm of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RmsNorm {
    /// How input and result are stored.
    pub cell: Cell,
}

impl KernelSpec for RmsNorm {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn fields(&self) -> Fields {
        self.cell.fields()
    }

    fn bindings(&self) -> &'static [Access] {
        // x, gain, y
        &[Access::Read, Access::Read, Access::ReadWrite]
    }

    fn params(&self) -> ParamsInfo {
        ParamsInfo::of::<RmsNormParams>()
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

/// Gradient of the input of an RMS norm, in f32, and the rows' statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RmsNormBackward {
    /// How all of them are stored.
    pub cell: Cell,
}

impl KernelSpec for RmsNormBackward {
    fn name(&self) -> &'static str {
        "rms_norm_backward"
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
        ParamsInfo::of::<RmsNormParams>()
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
