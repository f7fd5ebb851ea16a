//! Cross-entropy of rows of logits, and its gradient.

use super::params::{params, read};
use super::{Access, Fields, KernelSpec, ParamsInfo};
use crate::device::{DeviceCaps, ElementFormat};

params! {
    /// Parameters of `cross_entropy.wgsl`, which says what each means.
    CrossEntropyParams { rows: u32, width: u32, logits_skip: u32, labels_skip: u32, losses_skip: u32, gradient_scale: f32, first_workgroup: u32, grid_width: u32 }
}

/// Cross-entropy of rows of logits, and its gradient, which replaces the logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CrossEntropy;

impl KernelSpec for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross_entropy"
    }

    fn fields(&self) -> Fields {
        Fields::new()
    }

    fn bindings(&self) -> &'static [Access] {
        // labels, logits, losses
        &[Access::Read, Access::ReadWrite, Access::ReadWrite]
    }

    fn params(&self) -> ParamsInfo {
        ParamsInfo::of::<CrossEntropyParams>()
    }

    fn workgroup_work(&self, params: &[u8]) -> u64 {
        64 * u64::from(read::<CrossEntropyParams>(params).width)
    }

    fn all(_: u32, _: ElementFormat, _: &DeviceCaps) -> Vec<Self> {
        vec![Self]
    }
}
