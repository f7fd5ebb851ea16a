// Gradient of an embedding table: dtable[id] += scale * (sum of dout over the rows with that id). The host sorts the rows by id,
// and each element is summed by one invocation in the order of the rows. So there are no atomics, and every run has the same bits.
// A workgroup takes 64 columns of one id.

#include "workgroup.wgsl"

struct EmbeddingBackwardParams {
    num_runs: u32, // runs of rows with the same id
    width: u32, // elements of a row
    first_row: u32, // first row of dout in its window
    num_rows: u32, // rows of dout in the window
    first_id: u32, // id of the first table row in its window
    num_ids: u32, // table rows in the window
    dout_skip: u32, // elements of the binding of dout before the window
    table_skip: u32, // elements of the binding of dtable before the window
    scale: f32,
    tiles_x: u32, // tiles of 64 columns
    first_workgroup: u32, // number of the first workgroup of this part of the dispatch
    grid_width: u32, // workgroups along x
}

// A run of rows with the same id: order[begin], ..., order[end - 1].
struct Run {
    id: u32,
    begin: u32,
    end: u32,
}

@group(0) @binding(0) var<uniform> params: EmbeddingBackwardParams;
@group(0) @binding(1) var<storage, read> runs: array<Run>;
@group(0) @binding(2) var<storage, read> order: array<u32>;
@group(0) @binding(3) var<storage, read> dout: array<f32>;
@group(0) @binding(4) var<storage, read_write> dtable: array<f32>;

@compute @workgroup_size(64)
fn embedding_backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let number = workgroup_number(group);
    let column = number % params.tiles_x * 64u + lane;
    let which = number / params.tiles_x;
    if (which < params.num_runs && column < params.width) {
        let run = runs[which];
        if (run.id >= params.first_id && run.id - params.first_id < params.num_ids) {
            var sum = 0.0;
            for (var i = run.begin; i < run.end; i++) {
                let row = order[i];
                if (row >= params.first_row && row - params.first_row < params.num_rows) {
                    sum += dout[params.dout_skip + (row - params.first_row) * params.width + column];
                }
            }
            let at = params.table_skip + (run.id - params.first_id) * params.width + column;
            dtable[at] = fma(params.scale, sum, dtable[at]);
        }
    }
}
