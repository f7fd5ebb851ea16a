// Gradient of an RMS norm's input, and the rows' statistics (a mean of 0 and the scale) for the gradient of its gain.
//
//   n = x scale    g = dy gain    dx = scale (g - n mean(g n))

#include "rms_norm_rows.wgsl"

@group(0) @binding(1) var<storage, read> x: array<Cell>;
@group(0) @binding(2) var<storage, read> gain: array<Cell>;
@group(0) @binding(3) var<storage, read> dy: array<Cell>;
@group(0) @binding(4) var<storage, read_write> dx: array<Cell>;
@group(0) @binding(5) var<storage, read_write> stats: array<f32>;

@compute @workgroup_size(64)
fn rms_norm_backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let row = workgroup_number(group) * ROWS + index / LANES;
    let lane = index % LANES;
    let exists = row < params.rows;
    let cells = params.width / CELL;
    let first = params.x_skip + row * cells;
    let scale = row_scale(index, first, lane, exists);
    let first_dy = params.y_skip + row * cells;
    var products = Cell();
    if (exists) {
        for (var i = lane; i < cells; i += LANES) {
            products = fma(dy[first_dy + i] * gain[params.gain_skip + i], x[first + i] * scale, products);
        }
    }
    let mean = row_sums(index, vec2<f32>(cell_sum(products), 0.0)).x / f32(params.width);
    if (exists) {
        for (var i = lane; i < cells; i += LANES) {
            let g = dy[first_dy + i] * gain[params.gain_skip + i];
            let at = params.out_skip + row * cells + i;
            var result = scale * (g - x[first + i] * scale * mean);
            if (params.accumulate != 0u) {
                result += dx[at];
            }
            dx[at] = result;
        }
        if (lane == 0u) {
            stats[params.stats_skip + 2u * row] = 0.0;
            stats[params.stats_skip + 2u * row + 1u] = scale;
        }
    }
}
