// out = x^T, for products whose right factor is stored transposed, on CPUs (src/ops/matmul.rs says when).
//
// A workgroup takes 32 x 32 elements, a lane 16 neighbours of each of its rows: whole lines of the cache, of few rows at a time,
// since rows whole pages apart share one set of it.

struct TransposeParams {
    rows: u32, // of x
    columns: u32,
    x_skip: u32, // elements before the first
    x_stride: u32,
    out_skip: u32,
    tiles_x: u32, // tiles along the columns of x
    first_workgroup: u32,
    grid_width: u32,
}

const SIDE: u32 = 32u;
const RUN: u32 = 16u;

@group(0) @binding(0) var<uniform> params: TransposeParams;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(64)
fn transpose_matrix(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let number = workgroup_number(group);
    let row = number / params.tiles_x * SIDE + lane % 8u + lane / 16u * 8u;
    let first = number % params.tiles_x * SIDE + lane / 8u % 2u * RUN;
    if (row < params.rows) {
        for (var column = first; column < min(first + RUN, params.columns); column++) {
            out[params.out_skip + column * params.rows + row] = x[params.x_skip + row * params.x_stride + column];
        }
    }
}
