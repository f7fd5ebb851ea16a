// For each row, y = (x - mean) / sqrt(variance + eps) * gain + bias of a layer norm, or x / sqrt(mean of squares + eps) * gain of
// an RMS norm.

#include "norm_rows.wgsl"

@group(0) @binding(1) var<storage, read> x: array<Stored>;
@group(0) @binding(2) var<storage, read> gain: array<Cell>;
@group(0) @binding(3) var<storage, read_write> y: array<Stored>;
#if centred
@group(0) @binding(4) var<storage, read> bias: array<Cell>;
#endif

@compute @workgroup_size(64)
fn norm(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let row = workgroup_number(group) * ROWS + index / LANES;
    let lane = index % LANES;
    let exists = row < params.rows;
    let cells = params.width / CELL;
    let first = params.x_skip + row * cells;
    let stats = row_stats(index, first, lane, exists);
    if (exists) {
        for (var i = lane; i < cells; i += LANES) {
            let normal = (widen(x[first + i]) - stats.x) * stats.y;
            let factor = gain[params.gain_skip + i];
            #if centred
            let result = fma(normal, factor, bias[params.bias_skip + i]);
            #else
            let result = normal * factor;
            #endif
            y[params.y_skip + row * cells + i] = narrow(result);
        }
    }
}
