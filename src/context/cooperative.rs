//! Cooperative matrices of a device: the permission that wgpu wants. self_test.rs tests them.

/// The permission that wgpu wants for experimental features.
pub(super) fn experimental_features(features: wgpu::Features) -> wgpu::ExperimentalFeatures {
    if !features.contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX) {
        return wgpu::ExperimentalFeatures::disabled();
    }
    // SAFETY: wgpu warns that experimental features may have bugs that lead to undefined behaviour. The one in use is that of
    // cooperative matrices, where it leaves unchecked whether the adapter lists the sizes that a shader names and whether
    // control flow is uniform: `CooperativeMatrix::of` and the test of a claim accept listed sizes only, the kernels branch around matrices on
    // values uniform over the workgroup, and the product of the self test comes before kernels use them.
    #[expect(
        unsafe_code,
        reason = "the only way to ask for an experimental feature"
    )]
    unsafe {
        wgpu::ExperimentalFeatures::enabled()
    }
}
