//! What a device has to offer so that no pass meets a limit of wgpu's. A test compares each number with every kernel.

/// Storage bindings of the kernel that has most: q, k, v, dout, row statistics, dk, dv.
const STORAGE_BINDINGS: u32 = 7;

/// Bytes of the largest struct of parameters, that of attention.
const PARAMS_BYTES: u64 = 140;

/// Most invocations of a workgroup, all along x.
pub const MOST_INVOCATIONS: u32 = 256;

/// Workgroup memory that every device has to have, in bytes: WebGPU's default. Kernels that use more are chosen by the device's
/// own.
const WORKGROUP_MEMORY_BYTES: u32 = 16_384;

/// Workgroups along one dimension: enough for 65 536 in a grid. What needs more says so when it is planned.
const WORKGROUPS_PER_DIMENSION: u32 = 256;

/// A limit, and what kernels need of it on every device.
pub(super) struct Need {
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
            least: $least as u64,
        }
    };
}

/// All of them.
pub(super) const NEEDS: [Need; 10] = [
    need!(max_storage_buffers_per_shader_stage: u32, STORAGE_BINDINGS),
    // And the parameters.
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
