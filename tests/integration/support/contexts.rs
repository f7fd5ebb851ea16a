//! Contexts for tests. Every test body that needs a device runs on WebGPU's default limits first, on the adapter's own
//! second. A machine without an adapter fails; it does not skip.

use dilated_attention::{Context, ContextOptions, wgpu};

/// A context as `options` say, but that shaders run without checks where `TEST_TRUSTED_SHADERS` is set: continuous integration runs the tests both ways.
pub fn context_with(options: &ContextOptions) -> Context {
    let mut options = options.clone();
    options.kernels.trusted_shaders |= std::env::var_os("TEST_TRUSTED_SHADERS").is_some();
    options.open_blocking().unwrap_or_else(|error| {
        panic!("these tests need an adapter, on machines without a GPU a software one: {error}")
    })
}

/// Contexts with `options` but for the limits: WebGPU's defaults, then the adapter's own.
pub fn contexts_with(options: &ContextOptions) -> [(&'static str, Context); 2] {
    let defaults = ContextOptions {
        limits: Some(wgpu::Limits::default()),
        ..options.clone()
    };
    let own = ContextOptions {
        limits: None,
        ..options.clone()
    };
    [
        ("default limits", context_with(&defaults)),
        ("adapter limits", context_with(&own)),
    ]
}

/// Contexts on default options.
pub fn contexts() -> [(&'static str, Context); 2] {
    contexts_with(&ContextOptions::default())
}
