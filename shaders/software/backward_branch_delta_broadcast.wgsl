// The sweep of the backward (backward_sweep.wgsl) on CPUs of the `broadcast` tier, with scores from backward_scores.wgsl. A
// workgroup, one subgroup of eight lanes, takes SIDE rows and walks over their keys, SIDE at a time.

#include "backward_scores.wgsl"
#include "backward_sweep.wgsl"

// For each row of the lane, of which there are ROWS: what weights are relative to, the sum of weights, the sum of weights times dout . v.
var<private> top: array<f32, 8>;
var<private> weight: array<vec4<f32>, 8>;
var<private> weighted: array<vec4<f32>, 8>;

fn find_top(r: u32) {
    top[r] = row_top(tile, first_row + r);
}

fn weigh_pairs(i: u32) {
    let r = i / VEC4S;
    let seen = seen_of(i);
    let share = weights_of_pairs(i, top[r], seen);
    weight[r] += share;
    weighted[r] += score_gradients(share, sums[i], vec4<f32>(), seen);
}

fn end_row(r: u32) {
    if (first_row + r < tile.row_end) {
        let ones = vec4<f32>(1.0);
        store_row_sums(tile, first_row + r, vec2<f32>(dot(weight[r], ones), dot(weighted[r], ones)));
    }
}

@compute @workgroup_size(LANES)
fn backward_branch_delta_broadcast(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(subgroup_invocation_id) subgroup_lane: u32) {
    lane = subgroup_lane;
    tile = locate_tile(workgroup, SIDE);
    first_row = tile.row_begin + ROWS * lane;
#for i in range(rows)
    find_seen(${i}u);
#endfor
#for i in range(rows // 4)
    find_rows(${i}u);
#endfor
#for i in range(rows)
    find_top(${i}u);
#endfor
    for (first_key = tile.key_begin; first_key < tile.key_end; first_key += SIDE) {
        score_keys();
#for i in range(rows * vec4s)
        weigh_pairs(${i}u);
#endfor
    }
#for i in range(rows)
    end_row(${i}u);
#endfor
}
