// The sweep of the backward (backward_sweep.wgsl) on GPUs: a workgroup owns 32 rows and walks over their keys in tiles of 32, as
// backward_tile.wgsl says.

#include "backward_tile.wgsl"
#include "backward_sweep.wgsl"

// For each thread, the sums of the weights over its keys: a vec4 for its four rows. Behind them the sums of weights times dout . v.
var<workgroup> partial: array<vec4<f32>, 128>;

@compute @workgroup_size(64)
fn backward_branch_delta_tile(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let tile = locate_tile(workgroup, SIDE);
    let thread = Thread(index / 8u, index % 8u);
    let rows = vectors_of(tile.row_begin + thread.group);
    let top = vec4<f32>(row_top(tile, rows.x), row_top(tile, rows.y), row_top(tile, rows.z), row_top(tile, rows.w));
    var weight = mat4x4<f32>();
    var weighted = mat4x4<f32>();
    for (var key_tile = tile.key_begin; key_tile < tile.key_end; key_tile += SIDE) {
        let s = products(tile, thread, QUERY, tile.row_begin, KEY, key_tile);
        let dp = products(tile, thread, DOUT, tile.row_begin, VALUE, key_tile);
        let keys = vectors_of(key_tile + thread.lane);
        let seen_x = seen_keys(tile, rows.x, keys);
        let seen_y = seen_keys(tile, rows.y, keys);
        let seen_z = seen_keys(tile, rows.z, keys);
        let seen_w = seen_keys(tile, rows.w, keys);
        let p = mat4x4<f32>(weights_of(s[0], vec4<f32>(top.x), seen_x), weights_of(s[1], vec4<f32>(top.y), seen_y),
            weights_of(s[2], vec4<f32>(top.z), seen_z), weights_of(s[3], vec4<f32>(top.w), seen_w));
        weight += p;
        weighted += mat4x4<f32>(
            score_gradients(p[0], dp[0], vec4<f32>(), seen_x),
            score_gradients(p[1], dp[1], vec4<f32>(), seen_y),
            score_gradients(p[2], dp[2], vec4<f32>(), seen_z),
            score_gradients(p[3], dp[3], vec4<f32>(), seen_w),
        );
    }
    partial[index] = row_sum(weight);
    partial[64u + index] = row_sum(weighted);
    workgroupBarrier();
    // Lane i of a group adds up the sums of the group's row i and stores them.
    let row = tile.row_begin + thread.group + 8u * thread.lane;
    if (thread.lane < 4u && row < tile.row_end) {
        var sums = vec2<f32>();
        for (var i = 0u; i < 8u; i++) {
            let at = thread.group * 8u + i;
            sums += vec2<f32>(partial[at][thread.lane], partial[64u + at][thread.lane]);
        }
        store_row_sums(tile, row, sums);
    }
}
