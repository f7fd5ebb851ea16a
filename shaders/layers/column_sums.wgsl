// Sums over a block of rows, for each column: of dy, and with `normalised` of dy times the normalised x. The gradients of
// biases and of the weights of norms; the blocks' sums are added by sum_partials.

#include "workgroup.wgsl"

struct ColumnSumsParams {
    rows: u32,
    width: u32,
    x_skip: u32,
    dy_skip: u32,
    stats_skip: u32,
    partials_skip: u32,
    block: u32, // rows of one workgroup
    tiles_x: u32, // tiles of 64 columns
    first_workgroup: u32,
    grid_width: u32,
}

@group(0) @binding(0) var<uniform> params: ColumnSumsParams;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> stats: array<f32>;
@group(0) @binding(3) var<storage, read> dy: array<f32>;
// For each block of rows: the sums of dy n, where there is an n, then those of dy.
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
