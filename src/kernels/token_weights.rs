//! The attention weights of one query.

use super::params::params;
use super::{Access, Fields, KernelSpec, ParamsInfo};
use crate::device::{DeviceCaps, ElementFormat};

params! {
    /// Parameters of `token_weights.wgsl`, which says what each means.
    TokenWeightsParams { num_heads: u32, head_begin: u32, head_count: u32, num_keys: u32, dilation_rate: u32, has_query: u32, q_skip: u32, k_skip: u32, state_skip: u32, out_skip: u32, out_stride: u32, scale_log2e: f32, first_workgroup: u32, grid_width: u32 }
}

/// The attention weight of each key of one branch, for one query.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TokenWeights {
    /// Elements in one head.
    pub head_dim: u32,
    /// Element format of queries and keys.
    pub format: ElementFormat,
}

impl KernelSpec for TokenWeights {
    fn name(&self) -> &'static str {
        "token_weights"
    }

    fn fields(&self) -> Fields {
        Fields::new()
            .with("head_dim", self.head_dim)
            .with("format", self.format.name())
    }

    fn bindings(&self) -> &'static [Access] {
        // q, k, softmax_state, weights
        &[Access::Read, Access::Read, Access::Read, Access::ReadWrite]
    }

    fn params(&self) -> ParamsInfo {
        ParamsInfo::of::<TokenWeightsParams>()
    }

    fn workgroup_work(&self, _: &[u8]) -> u64 {
        64 * u64::from(self.head_dim)
    }

    fn all(head_dim: u32, format: ElementFormat, _: &DeviceCaps) -> Vec<Self> {
        vec![Self { head_dim, format }]
    }
}
