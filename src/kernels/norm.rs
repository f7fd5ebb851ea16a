//! Norms of rows, and the gradients of their inputs: layer norm (Ba, Kiros and Hinton 2016), and RMS norm (Zhang and Sennrich
//! 2019), which subtracts no mean and has no bias.

use super::params::{params, read};
use super::{Access, Fields, KernelSpec, ParamsInfo, VectorWidth};
use crate::device::{DeviceCaps, ElementFormat};

params! {
    /// Parameters of `norm_rows.wgsl`, which says what each means.
    NormParams { rows: u32, width: u32, x_skip: u32, y_skip: u32, out_skip: u32, stats_skip: u32, weight_skip: u32, bias_skip: u32, accumulate: u32, eps: f32, first_workgroup: u32, grid_width: u32 }
}

/// Rows that one workgroup computes.
pub(crate) const ROWS: u64 = 8;

/// Work of one workgroup: about four operations for each element of its rows.
fn work(params: &[u8]) -> u64 {
    4 * ROWS * u64::from(read::<NormParams>(params).width)
}

/// Both norms with each vector width of `format`: (centred, vector width).
fn both(format: ElementFormat) -> impl Iterator<Item = (bool, VectorWidth)> {
    let vectors = VectorWidth::stored(format).into_iter();
    vectors.flat_map(|vector_width| [(true, vector_width), (false, vector_width)])
}

/// A norm of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Norm {
    /// Whether it is a layer norm; else an RMS norm.
    pub centred: bool,
    /// How input and result are stored, and how many elements a lane takes at a time.
    pub vector_width: VectorWidth,
}

impl KernelSpec for Norm {
    fn name(&self) -> &'static str {
        "norm"
    }

    fn fields(&self) -> Fields {
        Fields::new()
            .with("centred", self.centred)
            .and(self.vector_width.fields())
    }

    fn bindings(&self) -> &'static [Access] {
        // x, weight, y, bias
        let all = &[Access::Read, Access::Read, Access::ReadWrite, Access::Read];
        if self.centred { all } else { &all[..3] }
    }

    fn params(&self) -> ParamsInfo {
        ParamsInfo::of::<NormParams>()
    }

    fn workgroup_work(&self, params: &[u8]) -> u64 {
        work(params)
    }

    fn all(_: u32, format: ElementFormat, _: &DeviceCaps) -> Vec<Self> {
        both(format)
            .map(|(centred, vector_width)| Self {
                centred,
                vector_width,
            })
            .collect()
    }
}

/// Gradient of the input of a norm, in f32. Also leaves the mean and the factor of each row, for the gradient of the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NormBackward {
    /// Whether it is a layer norm; else an RMS norm.
    pub centred: bool,
    /// How many elements a lane takes at a time; all of them are f32.
    pub vector_width: VectorWidth,
}

impl KernelSpec for NormBackward {
    fn name(&self) -> &'static str {
        "norm_backward"
    }

    fn fields(&self) -> Fields {
        Fields::new()
            .with("centred", self.centred)
            .and(self.vector_width.fields())
    }

    fn bindings(&self) -> &'static [Access] {
        // x, weight, dy, dx, stats
        &[
            Access::Read,
            Access::Read,
            Access::Read,
            Access::ReadWrite,
            Access::ReadWrite,
        ]
    }

    fn params(&self) -> ParamsInfo {
        ParamsInfo::of::<NormParams>()
    }

    fn workgroup_work(&self, params: &[u8]) -> u64 {
        work(params)
    }

    fn all(_: u32, format: ElementFormat, _: &DeviceCaps) -> Vec<Self> {
        both(ElementFormat::F32)
            .filter(|_| format == ElementFormat::F32)
            .map(|(centred, vector_width)| Self {
                centred,
                vector_width,
            })
            .collect()
    }
}
