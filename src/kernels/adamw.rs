//! One step of Adam with decoupled weight decay (Loshchilov and Hutter 2019).

use super::params::{LITTLE_WORK, params};
use super::{Access, Fields, KernelSpec, ParamsInfo};
use crate::device::{DeviceCaps, ElementFormat};

params! {
    /// Parameters of `adamw.wgsl`, which says what each means.
    AdamWParams { count: u32, skip: u32, learning_rate: f32, beta_1: f32, beta_2: f32, eps: f32, weight_decay: f32, correction_1: f32, correction_2: f32, max_norm: f32, gradient_scale: f32, first_workgroup: u32, grid_width: u32 }
}

/// One AdamW step of one tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AdamW;

impl KernelSpec for AdamW {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn fields(&self) -> Fields {
        Fields::new()
    }

    fn bindings(&self) -> &'static [Access] {
        // norm_squared, gradient, value, moment_1, moment_2
        &[
            Access::Read,
            Access::Read,
            Access::ReadWrite,
            Access::ReadWrite,
            Access::ReadWrite,
        ]
    }

    fn params(&self) -> ParamsInfo {
        ParamsInfo::of::<AdamWParams>()
    }

    fn workgroup_work(&self, _: &[u8]) -> u64 {
        LITTLE_WORK
    }

    fn all(_: u32, _: ElementFormat, _: &DeviceCaps) -> Vec<Self> {
        vec![Self]
    }
}
