// Gradient of the input of a norm. Also stores the mean and rstd = 1 / sqrt(variance + eps) of each row, which column_sums needs
// for the gradients of weight and bias. A workgroup takes 8 rows, with 8 lanes for each.
//
//   n = (x - mean) rstd    g = dy weight    dx = rstd (g - mean(g) - n mean(g n))
//
// For an RMS norm the means of x and of g count as 0.

#include "norm_rows.wgsl"

@group(0) @binding(1) var<storage, read> x: array<Vector>;
@group(0) @binding(2) var<storage, read> weight: array<Vector>;
@group(0) @binding(3) var<storage, read> dy: array<Vector>;
@group(0) @binding(4) var<storage, read_write> dx: array<Vector>;
@group(0) @binding(5) var<storage, read_write> stats: array<f32>;

@compute @workgroup_size(64)
fn norm_backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let row = workgroup_number(group) * ROWS + index / LANES;
    let lane = index % LANES;
    let exists = row < params.rows;
    let vectors = params.width / VECTOR_WIDTH;
    let first = params.x_skip + row * vectors;
    let of_row = row_stats(index, first, lane, exists);
    #if centred
    var sum = Vector();
    #endif
    var products = Vector();
    let first_dy = params.y_skip + row * vectors;
    if (exists) {
        for (var i = lane; i < vectors; i += LANES) {
            let g = dy[first_dy + i] * weight[params.weight_skip + i];
            #if centred
            sum += g;
            #endif
            products = fma(g, (x[first + i] - of_row.x) * of_row.y, products);
        }
    }
    #if centred
    let of_g = vector_sum(sum);
    #else
    let of_g = 0.0;
    #endif
    let means = row_sums(index, vec2<f32>(of_g, vector_sum(products))) / f32(params.width);
    if (exists) {
        for (var i = lane; i < vectors; i += LANES) {
            let g = dy[first_dy + i] * weight[params.weight_skip + i];
            let n = (x[first + i] - of_row.x) * of_row.y;
            let at = params.out_skip + row * vectors + i;
            var result = of_row.y * (g - means.x - n * means.y);
            if (params.accumulate != 0u) {
                result += dx[at];
            }
            dx[at] = result;
        }
        if (lane == 0u) {
            stats[params.stats_skip + 2u * row] = of_row.x;
            stats[params.stats_skip + 2u * row + 1u] = of_row.y;
        }
    }
}
