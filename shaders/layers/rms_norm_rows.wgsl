// Parameters of the RMS norms, and what they know of a row. Skips count cells, but for stats_skip.

#include "cells.wgsl"
#include "row_sums.wgsl"
#include "workgroup.wgsl"

struct RmsNormParams {
    rows: u32,
    width: u32,
    x_skip: u32,
    y_skip: u32, // of y, or of its gradient
    out_skip: u32, // of the gradient of x
    stats_skip: u32,
    gain_skip: u32,
    accumulate: u32,
    eps: f32,
    first_workgroup: u32,
    grid_width: u32,
}

@group(0) @binding(0) var<uniform> params: RmsNormParams;

// 1 / sqrt(mean of squares + eps) of a row of x.
fn row_scale(index: u32, first: u32, lane: u32, exists: bool) -> f32 {
    let cells = params.width / CELL;
    var squares = Cell();
    if (exists) {
        for (var i = lane; i < cells; i += LANES) {
            let value = widen(x[first + i]);
            squares = fma(value, value, squares);
        }
    }
    let mean = row_sums(index, vec2<f32>(cell_sum(squares), 0.0)).x / f32(params.width);
    return inverseSqrt(mean + params.eps);
}
