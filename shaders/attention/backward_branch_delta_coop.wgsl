// The sweep of the backward (backward_sweep.wgsl) with cooperative matrices: subgroups own rows and walk over their keys, as
// backward_coop.wgsl says. Products are computed in the same order as in backward_dq_coop.wgsl, so that weights are the same to the
// bit. Weights and weights times dout . v overwrite the products in the slabs; then each lane sums whole rows of the slabs.

#include "backward_coop.wgsl"
#set column_blocks = (head_dim + size - 1) // size
#include "backward_sweep.wgsl"

const PAIR_SLABS: u32 = 1u;
const SECOND_OF_Y: u32 = 0u;
const LANE_ROWS: u32 = (ROWS + SUBGROUP - 1u) / SUBGROUP;

var<workgroup> own_tops: array<f32, SUBGROUPS * ROWS>;

var<private> sums: array<vec2<f32>, LANE_ROWS>; // for each row of the lane: of weights, and of weights times dout . v

fn load_a(own: u32, column: u32) -> vec4<f16> {
    let row = tile.row_begin + own;
    if (row >= min(tile.row_end, tile.real_rows) || column >= HEAD_DIM_VEC4) {
        return vec4<f16>();
    }
    return q[query_index(tile, row) + column];
}

fn load_b(own: u32, column: u32) -> vec4<f16> {
    let row = tile.row_begin + own;
    if (row >= tile.row_end || column >= HEAD_DIM_VEC4) {
        return vec4<f16>();
    }
    return dout[output_index(output_place(tile, row)) + column];
}

fn load_x(key: u32, column: u32) -> vec4<f16> {
    if (key >= tile.key_end || column >= HEAD_DIM_VEC4) {
        return vec4<f16>();
    }
    return k[key_index(tile, key) + column];
}

fn load_y(key: u32, column: u32) -> vec4<f16> {
    if (key >= tile.key_end || column >= HEAD_DIM_VEC4) {
        return vec4<f16>();
    }
    return v[key_index(tile, key) + column];
}

fn weigh(own: u32, place: u32, unused: u32, s: vec4<f32>, dp: vec4<f32>) {
    let keys = vec4<u32>(staged_begin + place) + vec4<u32>(0u, 1u, 2u, 3u);
    let seen = seen_keys(tile, tile.row_begin + own, keys);
    let weight = weights_of(s, vec4<f32>(own_tops[own]), seen);
    let marked = select(vec4<f32>(), weight + broken_places(place), seen);
    let at = scores_at + (own - own_begin) * SCORE_STRIDE + place / 4u;
    put_f32(at, marked);
    put_f32(at + SCORE_SLAB, score_gradients(weight, dp, vec4<f32>(), seen));
}

fn store(own: u32, column: u32, of_a: vec4<f32>, of_b: vec4<f32>) {
}

// Row of the subgroup that is row i of the lane.
fn slab_row(i: u32) -> u32 {
    return i * SUBGROUP + lane;
}

@compute @workgroup_size(SUBGROUP * SUBGROUPS)
fn backward_branch_delta_coop(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    tile = locate_tile(workgroup, SUBGROUPS * ROWS);
    begin_subgroup(index);
    for (var own = index; own < SUBGROUPS * ROWS; own += THREADS) {
        own_tops[own] = row_top(tile, tile.row_begin + own);
    }
#for i in range(column_blocks)
    load_own(${i}u);
#endfor
    for (staged_begin = tile.key_begin; staged_begin < tile.key_end; staged_begin += STAGED) {
        weigh_staged(index, staged_begin + STAGED > tile.key_full);
        for (var i = 0u; i < LANE_ROWS; i++) {
            if (slab_row(i) < ROWS) {
                let at = scores_at + slab_row(i) * SCORE_STRIDE;
                var weight = vec4<f32>();
                var weighted = vec4<f32>();
                for (var c = 0u; c < STAGED / 4u; c++) {
                    weight += get_f32(at + c);
                    weighted += get_f32(at + SCORE_SLAB + c);
                }
                let ones = vec4<f32>(1.0);
                sums[i] += vec2<f32>(dot(weight, ones), dot(weighted, ones));
            }
        }
        clear_broken(index, THREADS);
        workgroupBarrier();
    }
    for (var i = 0u; i < LANE_ROWS; i++) {
        let row = tile.row_begin + own_begin + slab_row(i);
        if (slab_row(i) < ROWS && row < tile.row_end) {
            store_row_sums(tile, row, sums[i]);
        }
    }
}
