// out[r] = scale * table[ids[r]], or with `accumulate` out[r] += scale * table[ids[r]], for rows whose id is in the bound window of
// the table. A workgroup takes 64 vectors of one row, one for each invocation.

#include "vector_width.wgsl"
#include "workgroup.wgsl"

struct EmbeddingParams {
    rows: u32, // rows of out
    width: u32, // vectors of a row
    first_id: u32, // id of the first table row in the window
    num_ids: u32, // table rows in the window
    ids_skip: u32, // elements of the binding of ids before that of the first row
    table_skip: u32, // vectors of the binding of the table before the window
    out_skip: u32, // vectors of the binding of out before the first row
    accumulate: u32, // 1: add to out; 0: overwrite it
    scale: f32,
    tiles_x: u32, // tiles of 64 vectors in a row
    first_workgroup: u32, // number of the first workgroup of this part of the dispatch
    grid_width: u32, // workgroups along x
}

@group(0) @binding(0) var<uniform> params: EmbeddingParams;
@group(0) @binding(1) var<storage, read> ids: array<u32>;
@group(0) @binding(2) var<storage, read> table: array<Vector>;
@group(0) @binding(3) var<storage, read_write> out: array<Stored>;

@compute @workgroup_size(64)
fn embedding(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let number = workgroup_number(group);
    let column = number % params.tiles_x * 64u + lane;
    let row = number / params.tiles_x;
    if (row < params.rows && column < params.width) {
        let id = ids[params.ids_skip + row];
        if (id >= params.first_id && id - params.first_id < params.num_ids) {
            var value = params.scale * table[params.table_skip + (id - params.first_id) * params.width + column];
            let at = params.out_skip + row * params.width + column;
            if (params.accumulate != 0u) {
                value += widen(out[at]);
            }
            out[at] = narrow(value);
        }
    }
}
