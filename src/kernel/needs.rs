//! What a device has to offer so that no pass meets a limit of wgpu's.

use super::backward::{BackwardShape, BackwardVariant};
use super::forward::{ForwardShape, ForwardVariant};
use super::matmul::MatmulVariant;
use super::{Activation, Cell, Kernel, Storage};
use crate::plan::{DeviceFacts, Pass};

/// Most invocations of a workgroup, all along x. A test compares with every shader.
pub const MOST_INVOCATIONS: u32 = 256;

/// Workgroup memory that every device has to have, in bytes: WebGPU's default. Kernels that use more are chosen by the device's
/// own. A test compares with every shader.
pub const WORKGROUP_MEMORY_BYTES: u32 = 16_384;

/// Workgroups along one dimension: enough for 65 536 in a grid. What needs more says so when it is planned.
const WORKGROUPS_PER_DIMENSION: u32 = 256;

/// A limit, and what kernels need of it on every device.
pub(crate) struct Need {
    /// Its name in [`wgpu::Limits`].
    pub limit: &'static str,
    /// What a device has.
    pub given: fn(&wgpu::Limits) -> u64,
    /// Sets it.
    pub set: fn(&mut wgpu::Limits, u64),
    /// What it has to be, at least.
    pub least: u64,
}

macro_rules! need {
    ($limit:ident: $type:ty, $least:expr) => {
        Need {
            limit: stringify!($limit),
            given: |limits| limits.$limit.into(),
            set: |limits, value| limits.$limit = value as $type,
            least: u64::from($least),
        }
    };
}

/// All of them.
pub(crate) fn needs() -> [Need; 10] {
    let kernels = with_each_table();
    let largest = |of: fn(&Kernel) -> u64| kernels.iter().map(of).fold(0, u64::max);
    let storage_buffers = largest(|kernel| kernel.bindings().len() as u64);
    [
        need!(max_storage_buffers_per_shader_stage: u32, storage_buffers),
        // And the parameters.
        need!(max_bindings_per_bind_group: u32, storage_buffers + 1),
        need!(max_bind_groups: u32, 1u32),
        need!(max_uniform_buffers_per_shader_stage: u32, 1u32),
        need!(max_dynamic_uniform_buffers_per_pipeline_layout: u32, 1u32),
        need!(max_uniform_buffer_binding_size: u64, largest(Kernel::params_bytes)),
        need!(max_compute_invocations_per_workgroup: u32, MOST_INVOCATIONS),
        need!(max_compute_workgroup_size_x: u32, MOST_INVOCATIONS),
        need!(max_compute_workgroup_storage_size: u32, WORKGROUP_MEMORY_BYTES),
        need!(max_compute_workgroups_per_dimension: u32, WORKGROUPS_PER_DIMENSION),
    ]
}

/// A kernel with each table of bindings and each struct of parameters. A test compares with every kernel.
fn with_each_table() -> Vec<Kernel> {
    let facts = DeviceFacts::webgpu_defaults();
    let (head_dim, storage, cell) = (64, Storage::F32, Cell::Scalar);
    let activation = Activation::Identity;
    let forward = ForwardVariant::with_shape(ForwardShape::Tile, head_dim, storage, &facts);
    let backward = BackwardVariant::with_shape(BackwardShape::Tile, head_dim, storage, &facts);
    let passes = [Pass::Means, Pass::Dq, Pass::DkDv];
    let mut kernels: Vec<Kernel> = passes
        .into_iter()
        .filter_map(|pass| backward.kernel(pass))
        .collect();
    kernels.extend([
        Kernel::Fill,
        Kernel::Forward(forward),
        Kernel::TokenWeights { head_dim, storage },
        Kernel::Matmul {
            variant: MatmulVariant::Tile,
            transpose_a: false,
            transpose_b: false,
            activation,
            left: storage,
            right: storage,
            result: cell,
        },
        Kernel::SumPartials,
        Kernel::LayerNorm(cell),
        Kernel::LayerNormBackward(cell),
        Kernel::ColumnSums { normalised: true },
        Kernel::Activation { activation, cell },
        Kernel::ActivationBackward(activation),
        Kernel::Blend(cell),
        Kernel::Embedding(cell),
        Kernel::EmbeddingBackward,
        Kernel::Xpos(storage),
        Kernel::FromF32(storage),
        Kernel::ToF32(storage),
        Kernel::CrossEntropy,
        Kernel::Reduce { squares: true },
        Kernel::AdamW,
    ]);
    kernels
}
