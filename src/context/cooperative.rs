//! The permission to use cooperative matrices, an experimental feature of wgpu. self_test.rs tests them.

/// The permission that wgpu demands for experimental features.
pub(super) fn experimental_features(features: wgpu::Features) -> wgpu::ExperimentalFeatures {
    if !features.contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX) {
        return wgpu::ExperimentalFeatures::disabled();
    }
    // SAFETY: wgpu warns that experimental features may have bugs that lead to undefined behaviour. The only one in use is
    // cooperative matrices. There wgpu does not check two things: whether the adapter lists the sizes that a shader names, and
    // whether control flow is uniform. `CooperativeMatrix::of` and `test_claim_of_matrices` accept listed sizes only. Kernels
    // branch around matrix operations only on values that are uniform over the workgroup. And no kernel uses matrices that have
    // not passed the self test.
    #[expect(
        unsafe_code,
        reason = "the only way to ask for an experimental feature"
    )]
    unsafe {
        wgpu::ExperimentalFeatures::enabled()
    }
}
