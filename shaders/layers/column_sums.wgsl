// Sums of each column over blocks of rows: of dy and, with `normalised`, of dy times the normalised x. These are the gradients of
// biases and of the weights of norms, once sum_partials has added up the blocks. A workgroup takes 64 columns of one block, one for
// each invocation.

#include "workgroup.wgsl"

struct ColumnSumsParams {
    rows: u32,
    width: u32, // elements of a row
    x_skip: u32, // elements of the binding of x before the first row
    dy_skip: u32, // the same for dy
    stats_skip: u32, // the same for stats
    partials_skip: u32, // elements of the binding of partials before the sums of the first block
    block: u32, // rows of a block
    tiles_x: u32, // tiles of 64 columns
    first_workgroup: u32, // number of the first workgroup of this part of the dispatch
    grid_width: u32, // workgroups along x
}

@group(0) @binding(0) var<uniform> params: ColumnSumsParams;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> stats: array<f32>;
@group(0) @binding(3) var<storage, read> dy: array<f32>;
// For each block: with `normalised` the sums of dy times the normalised x, `width` of them; then the sums of dy.
@group(0) @binding(4) var<storage, read_write> partials: array<f32>;

@compute @workgroup_size(64)
fn column_sums(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let number = workgroup_number(group);
    let column = number % params.tiles_x * 64u + lane;
    let block = number / params.tiles_x;
    let begin = block * params.block;
    if (column < params.width && begin < params.rows) {
#if normalised
        var products = 0.0;
#endif
        var sum = 0.0;
        for (var row = begin; row < min(params.rows, begin + params.block); row++) {
            let value = dy[params.dy_skip + row * params.width + column];
            sum += value;
#if normalised
            let mean = stats[params.stats_skip + 2u * row];
            let scale = stats[params.stats_skip + 2u * row + 1u];
            products = fma(value, (x[params.x_skip + row * params.width + column] - mean) * scale, products);
#endif
        }
        var at = params.partials_skip + block * params.width + column;
#if normalised
        at += block * params.width;
        partials[at] = products;
        at += params.width;
#endif
        partials[at] = sum;
    }
}
