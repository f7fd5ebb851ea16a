// Parameters of the norms of rows, and what they know of a row. Skips count vectors, but for stats_skip.

#include "vector_width.wgsl"
#include "row_sums.wgsl"
#include "workgroup.wgsl"

struct NormParams {
    rows: u32,
    width: u32,
    x_skip: u32,
    y_skip: u32, // of y, or of its gradient
    out_skip: u32, // of the gradient of x
    stats_skip: u32,
    weight_skip: u32,
    bias_skip: u32,
    accumulate: u32,
    eps: f32,
    first_workgroup: u32,
    grid_width: u32,
}

@group(0) @binding(0) var<uniform> params: NormParams;

// Mean and 1 / sqrt(variance + eps) of a row of x, in two passes: a single one loses the variance of rows with a large mean.
// An RMS norm takes the mean to be 0.
fn row_stats(index: u32, first: u32, lane: u32, exists: bool) -> vec2<f32> {
    let vectors = params.width / VECTOR_WIDTH;
    #if centred
    var sum = Vector();
    if (exists) {
        for (var i = lane; i < vectors; i += LANES) {
            sum += widen(x[first + i]);
        }
    }
    let mean = row_sums(index, vec2<f32>(vector_sum(sum), 0.0)).x / f32(params.width);
    #else
    let mean = 0.0;
    #endif
    var squares = Vector();
    if (exists) {
        for (var i = lane; i < vectors; i += LANES) {
            let off = widen(x[first + i]) - mean;
            squares = fma(off, off, squares);
        }
    }
    let variance = row_sums(index, vec2<f32>(vector_sum(squares), 0.0)).x / f32(params.width);
    return vec2<f32>(mean, inverseSqrt(variance + params.eps));
}
