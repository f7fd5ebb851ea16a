// The sweep of the backward (backward_sweep.wgsl) on CPUs of the `rows` tier: lanes own rows, keys are staged, as backward_lanes.wgsl says.

#include "backward_lanes.wgsl"
#include "backward_sweep.wgsl"

// For each row of the lane: what weights are relative to, the sum of weights, the sum of weights times dout . v.
var<private> top: vec4<f32>;
var<private> weight: array<vec4<f32>, 4>;
var<private> weighted: array<vec4<f32>, 4>;

fn load_a(i: u32) -> vec4<f32> {
    return widen(q[i]);
}

fn load_b(i: u32) -> vec4<f32> {
    return widen(dout[i]);
}

fn old_a(i: u32) -> vec4<f32> {
    return vec4<f32>();
}

fn old_b(i: u32) -> vec4<f32> {
    return vec4<f32>();
}

fn store(i: u32, of_a: vec4<f32>, of_b: vec4<f32>) {
}

fn weigh_keys(tile: Tile, r: u32, row: u32, keys: vec4<u32>, spoiled: vec4<f32>) {
    if (r < VECTORS_PER_LANE) {
        let seen = seen_keys(tile, row, keys);
        let share = weights_of(s[r], vec4<f32>(top[r]), seen) + select(vec4<f32>(), spoiled, seen);
        weight[r] += share;
        weighted[r] += score_gradients(share, dp[r], vec4<f32>(), seen);
    }
}

fn weigh_four(tile: Tile, rows: vec4<u32>, first: u32, number: u32) {
    let keys = first + vec4<u32>(0u, 1u, 2u, 3u);
    let spoiled = spoil(number);
    weigh_keys(tile, 0u, rows.x, keys, spoiled);
    weigh_keys(tile, 1u, rows.y, keys, spoiled);
    weigh_keys(tile, 2u, rows.z, keys, spoiled);
    weigh_keys(tile, 3u, rows.w, keys, spoiled);
}

fn end_row(tile: Tile, r: u32, row: u32) {
    if (r < VECTORS_PER_LANE && row < tile.row_end) {
        let ones = vec4<f32>(1.0);
        store_row_sums(tile, row, vec2<f32>(dot(weight[r], ones), dot(weighted[r], ones)));
    }
}

@compute @workgroup_size(THREADS)
fn backward_branch_delta_rows(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) invocation: u32) {
    let tile = locate_tile(workgroup, SIDE);
    let own = find_own(tile.row_begin, invocation);
    begin_row(tile, 0u, own.x);
    begin_row(tile, 1u, own.y);
    begin_row(tile, 2u, own.z);
    begin_row(tile, 3u, own.w);
    top = vec4<f32>(row_top(tile, own.x), row_top(tile, own.y), row_top(tile, own.z), row_top(tile, own.w));
    begin_staging(invocation);
    // Copied to a variable that the loop seems to change: otherwise compilers compute the index anew after every barrier.
    var lane = invocation;
    var number = 0u;
    for (var first = tile.key_begin; first < tile.key_end; first += STAGED) {
        lane = select(lane, 0u, first == 0xffffffffu);
        number++;
        workgroupBarrier();
        stage_keys(tile, first, lane, number);
        workgroupBarrier();
        clear_products();
#for c in range(head_dim // 4)
        add_products_a(${c}u);
#endfor
        workgroupBarrier();
#for c in range(head_dim // 4)
        add_products_b(${c}u);
#endfor
        workgroupBarrier();
        weigh_four(tile, find_own(tile.row_begin, lane), first, number);
    }
    end_row(tile, 0u, own.x);
    end_row(tile, 1u, own.y);
    end_row(tile, 2u, own.z);
    end_row(tile, 3u, own.w);
}
