// out[r] (+)= scale * table[ids[r]], for ids in the window of the table that is bound.

#include "vector_width.wgsl"
#include "workgroup.wgsl"

struct EmbeddingParams {
    rows: u32,
    width: u32, // in vectors, as the skips of table and out
    first_id: u32, // of the window of the table, and how many
    num_ids: u32,
    ids_skip: u32,
    table_skip: u32,
    out_skip: u32,
    accumulate: u32,
    scale: f32,
    tiles_x: u32, // tiles of 64 vectors
    first_workgroup: u32,
    grid_width: u32,
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
