// The sums that shared/backward_means.wgsl is about, on CPUs, with scores as shared/backward_scores.wgsl computes them. A
// workgroup takes SIDE rows.

@group(0) @binding(5) var<storage, read> softmax_state: array<vec2<f32>>;
@group(0) @binding(6) var<storage, read_write> terms: array<vec4<f32>>;

var<private> top: array<f32, 8>; // of each row
var<private> weight: array<vec4<f32>, 8>;
var<private> weighted: array<vec4<f32>, 8>;

fn find_top(r: u32) {
    top[r] = row_top(tile, first_row + r);
}

fn weigh(i: u32) {
    let r = i / CELLS;
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
fn backward_means_products(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(subgroup_invocation_id) subgroup_lane: u32) {
    lane = subgroup_lane;
    tile = locate_tile(workgroup, SIDE);
    first_row = tile.row_begin + ROWS * lane;
    find_seen_each();
    find_rows_each();
    find_top_each();
    for (first_key = tile.key_begin; first_key < tile.key_end; first_key += SIDE) {
        score_keys();
        weigh_each();
    }
    end_row_each();
}
