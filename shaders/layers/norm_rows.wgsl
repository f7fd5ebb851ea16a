// Parameters of norms and their backward, and the statistics of a row.

#include "vector_width.wgsl"
#include "row_sums.wgsl"
#include "workgroup.wgsl"

struct NormParams {
    rows: u32,
    width: u32, // elements of a row
    x_skip: u32, // vectors of the binding of x before the first row
    y_skip: u32, // the same for y, or for its gradient
    out_skip: u32, // the same for the gradient of x
    stats_skip: u32, // elements of the binding of stats before those of the first row: mean, rstd
    weight_skip: u32, // vectors of the binding of weight before the first one
    bias_skip: u32, // vectors of the binding of bias before the first one
    accumulate: u32, // 1: add to the gradient of x; 0: overwrite it
    eps: f32,
    first_workgroup: u32, // number of the first workgroup of this part of the dispatch
    grid_width: u32, // workgroups along x
}

@group(0) @binding(0) var<uniform> params: NormParams;

// Mean and 1 / sqrt(variance + eps) of a row of x. Two passes, because a single pass would lose the variance of rows with a large
// mean. For an RMS norm the mean counts as 0.
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
