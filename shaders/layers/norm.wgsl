// Norm of each row. Layer norm (`centred`): y = (x - mean) / sqrt(variance + eps) * weight + bias. RMS norm: y = x / sqrt(mean of
// squares + eps) * weight. A workgroup takes 8 rows, with 8 lanes for each.

#include "norm_rows.wgsl"

@group(0) @binding(1) var<storage, read> x: array<Stored>;
@group(0) @binding(2) var<storage, read> weight: array<Vector>;
@group(0) @binding(3) var<storage, read_write> y: array<Stored>;
#if centred
@group(0) @binding(4) var<storage, read> bias: array<Vector>;
#endif

@compute @workgroup_size(64)
fn norm(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let row = workgroup_number(group) * ROWS + index / LANES;
    let lane = index % LANES;
    let exists = row < params.rows;
    let vectors = params.width / VECTOR_WIDTH;
    let first = params.x_skip + row * vectors;
    let stats = row_stats(index, first, lane, exists);
    if (exists) {
        for (var i = lane; i < vectors; i += LANES) {
            let normal = (widen(x[first + i]) - stats.x) * stats.y;
            let factor = weight[params.weight_skip + i];
            #if centred
            let result = fma(normal, factor, bias[params.bias_skip + i]);
            #else
            let result = normal * factor;
            #endif
            y[params.y_skip + row * vectors + i] = narrow(result);
        }
    }
}
