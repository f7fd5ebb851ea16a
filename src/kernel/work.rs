//! How much one workgroup of a dispatch has to do, about.

use super::backward::BackwardKernel;
use super::{
    AttentionParams, ColumnSumsParams, CrossEntropyParams, Kernel, LayerNormParams, MatmulParams,
    SumPartialsParams,
};
use crate::plan::Pass;

impl Kernel {
    /// Work of one workgroup of a dispatch with the parameters `params`, in multiplications, roughly. What counts is that two
    /// dispatches of one kernel compare: time divided by this is then a property of the kernel on its device, which is
    /// learned.
    pub(crate) fn workgroup_work(&self, params: &[u8]) -> f64 {
        let work = match self {
            Self::Matmul { variant, .. } => {
                let params: MatmulParams = read(params);
                let [rows, columns] = variant.tile();
                rows * columns * u64::from(params.inner.min(params.split))
            }
            Self::Forward(variant) => {
                let rows = variant.rows_per_workgroup();
                2 * pairs(rows, variant.head_dim, Self::keys(params))
            }
            Self::Backward(kernel) => Self::backward_work(kernel, params),
            Self::TokenWeights { head_dim, .. } => 64 * u64::from(*head_dim),
            Self::LayerNorm(_) | Self::LayerNormBackward(_) => {
                32 * u64::from(read::<LayerNormParams>(params).width)
            }
            Self::CrossEntropy => 64 * u64::from(read::<CrossEntropyParams>(params).width),
            Self::ColumnSums { .. } => 64 * u64::from(read::<ColumnSumsParams>(params).block),
            Self::SumPartials => 64 * u64::from(read::<SumPartialsParams>(params).num_partials),
            Self::Fill => 1024,
            Self::Reduce { .. } => 4096,
            Self::Activation { .. }
            | Self::ActivationBackward(_)
            | Self::Blend(_)
            | Self::Embedding(_)
            | Self::EmbeddingBackward
            | Self::Xpos(_)
            | Self::FromF32(_)
            | Self::ToF32(_)
            | Self::AdamW => 64 * 8,
        };
        work.max(64) as f64
    }

    fn keys(params: &[u8]) -> u32 {
        let params: AttentionParams = read(params);
        let keys = params.key_row_end.saturating_sub(params.key_row_begin);
        keys.min(params.rows_per_segment)
    }

    fn rows(params: &[u8]) -> u32 {
        let params: AttentionParams = read(params);
        let rows = params.row_end.saturating_sub(params.row_begin);
        rows.min(params.rows_per_segment)
    }

    fn backward_work(kernel: &BackwardKernel, params: &[u8]) -> u64 {
        let (variant, pass) = (kernel.variant(), kernel.pass());
        let (keys, rows) = (Self::keys(params), Self::rows(params));
        let others = match pass {
            Pass::Forward | Pass::Means | Pass::Dq => keys,
            Pass::Weights => variant.tile(),
            Pass::Dk | Pass::Dv | Pass::DkDv => rows,
        };
        let products = match pass {
            _ if kernel.is_product() => 1,
            // With matrices, one more: of what f16 has left of the weights.
            Pass::Dq if variant.shape.is_cooperative() => 4,
            Pass::Dq => 3,
            Pass::DkDv => 4,
            _ => 2,
        };
        let pairs = pairs(variant.tile(), variant.head_dim, others);
        products * pairs / u64::from(variant.column_tiles(pass))
    }
}

fn pairs(rows: u32, head_dim: u32, others: u32) -> u64 {
    u64::from(rows) * u64::from(head_dim) * u64::from(others)
}

/// The parameters, which a recording holds at any offset; a recording of nothing has none.
fn read<P: bytemuck::Pod>(params: &[u8]) -> P {
    bytemuck::try_pod_read_unaligned(params).unwrap_or_else(|_| P::zeroed())
}
