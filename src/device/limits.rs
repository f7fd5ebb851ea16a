//! The limits of wgpu that a device needs for every pass to have a kernel. A test compares these numbers with all kernels.

/// Most storage bindings of a kernel: q, k, v, dout, row statistics, dk, dv.
const STORAGE_BINDINGS: u32 = 7;

/// Bytes of the largest parameter struct, that of attention.
const PARAMS_BYTES: u64 = 148;

/// Most invocations of a workgroup, all along x.
pub const MOST_INVOCATIONS: u32 = 256;

/// Least workgroup memory of a device, in bytes: WebGPU's default. Kernels that need more are chosen only on devices that have more.
const WORKGROUP_MEMORY_BYTES: u32 = 16_384;

/// Least limit on workgroups along one dimension: enough for 65 536 workgroups in a grid. Plans that need more fail with an error.
const WORKGROUPS_PER_DIMENSION: u32 = 256;

/// A limit of wgpu, and the least value with which all kernels run.
pub(super) struct Need {
    /// Name of the field in [`wgpu::Limits`].
    pub limit: &'static str,
    /// Reads the limit.
    pub given: fn(&wgpu::Limits) -> u64,
    /// Sets the limit.
    pub set: fn(&mut wgpu::Limits, u64),
    /// The least value.
    pub least: u64,
}

macro_rules! need {
    ($limit:ident: $type:ty, $least:expr) => {
        Need {
            limit: stringify!($limit),
            given: |limits| limits.$limit.into(),
            set: |limits, value| limits.$limit = value as $type,
            least: $least as u64,
        }
    };
}

/// All limits that kernels depend on.
pub(super) const NEEDS: [Need; 10] = [
    need!(max_storage_buffers_per_shader_stage: u32, STORAGE_BINDINGS),
    // One more for the parameters.
    need!(max_bindings_per_bind_group: u32, STORAGE_BINDINGS + 1),
    need!(max_bind_groups: u32, 1),
    need!(max_uniform_buffers_per_shader_stage: u32, 1),
    need!(max_dynamic_uniform_buffers_per_pipeline_layout: u32, 1),
    need!(max_uniform_buffer_binding_size: u64, PARAMS_BYTES),
    need!(max_compute_invocations_per_workgroup: u32, MOST_INVOCATIONS),
    need!(max_compute_workgroup_size_x: u32, MOST_INVOCATIONS),
    need!(max_compute_workgroup_storage_size: u32, WORKGROUP_MEMORY_BYTES),
    need!(max_compute_workgroups_per_dimension: u32, WORKGROUPS_PER_DIMENSION),
];
