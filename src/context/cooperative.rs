//! Cooperative matrices of a device: the permission that wgpu wants, and what the adapter of a borrowed device has. self_test.rs tests them.

/// The permission that wgpu wants for experimental features.
pub(super) fn experimental_features(features: wgpu::Features) -> wgpu::ExperimentalFeatures {
    if !features.contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX) {
        return wgpu::ExperimentalFeatures::disabled();
    }
    // SAFETY: wgpu warns that experimental features may have bugs that lead to undefined behaviour. The one in use is that of
    // cooperative matrices, where it leaves unchecked whether the adapter lists the sizes that a shader names and whether
    // control flow is uniform: `CooperativeMatrix::of` accepts listed sizes only, the kernels branch around matrices on
    // values uniform over the workgroup, and the product of the self test comes before the first use.
    #[expect(
        unsafe_code,
        reason = "the only way to ask for an experimental feature"
    )]
    unsafe {
        wgpu::ExperimentalFeatures::enabled()
    }
}

/// The cooperative matrices of the adapter that a device of an application's own is from: the device does not tell.
#[cfg(not(target_arch = "wasm32"))]
pub(super) fn matrices_of(info: &wgpu::AdapterInfo) -> Vec<wgpu::CooperativeMatrixProperties> {
    // A driver that fails here has none to offer.
    crate::watch::catch(|| {
        let adapters = super::adapter::new_instance().enumerate_adapters(wgpu::Backends::all());
        pollster::block_on(adapters)
            .iter()
            .find(|adapter| adapter.get_info() == *info)
            .map(wgpu::Adapter::cooperative_matrix_properties)
            .unwrap_or_default()
    })
    .unwrap_or_default()
}

/// Browsers have none.
#[cfg(target_arch = "wasm32")]
pub(super) fn matrices_of(_: &wgpu::AdapterInfo) -> Vec<wgpu::CooperativeMatrixProperties> {
    Vec::new()
}
