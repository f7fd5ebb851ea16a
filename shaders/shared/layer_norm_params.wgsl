// Parameters of the layer norm kernels. Skips count cells (shared/cells_*.wgsl), but for stats_skip.

struct LayerNormParams {
    rows: u32,
    width: u32,
    x_skip: u32,
    y_skip: u32, // of y, or of its gradient
    out_skip: u32, // of the gradient of x
    stats_skip: u32,
    gain_skip: u32,
    bias_skip: u32,
    accumulate: u32,
    eps: f32,
    first_workgroup: u32,
    grid_width: u32,
}

@group(0) @binding(0) var<uniform> params: LayerNormParams;
