// y = x / sqrt(mean of squares + eps) * gain for each row.

#include "rms_norm_rows.wgsl"

@group(0) @binding(1) var<storage, read> x: array<Stored>;
@group(0) @binding(2) var<storage, read> gain: array<Cell>;
@group(0) @binding(3) var<storage, read_write> y: array<Stored>;

@compute @workgroup_size(64)
fn rms_norm(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let row = workgroup_number(group) * ROWS + index / LANES;
    let lane = index % LANES;
    let exists = row < params.rows;
    let cells = params.width / CELL;
    let first = params.x_skip + row * cells;
    let scale = row_scale(index, first, lane, exists);
    if (exists) {
        for (var i = lane; i < cells; i += LANES) {
            y[params.y_skip + row * cells + i] = narrow(widen(x[first + i]) * scale * gain[params.gain_skip + i]);
        }
    }
}
