// Gradients of the keys and values of one branch, with cooperative matrices: subgroups own keys and walk over the rows that see
// them, as backward_coop.wgsl says.
//
//   s = k q^T    dp = v dout^T    dv += p dout    ds = p (dp - mean)    dk += scale ds q
//
// p is the weight's share of the row's softmax, mean the row's mean of dout . v.

#include "backward_coop.wgsl"
#set column_blocks = (head_dim + size - 1) // size

@group(0) @binding(5) var<storage, read> row_stats: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read_write> dk: array<Stored4>;
@group(0) @binding(7) var<storage, read_write> dv: array<Stored4>;

const PAIR_SLABS: u32 = 2u;
const SECOND_OF_Y: u32 = 1u;

var<workgroup> staged_stats: array<RowStats, STAGED>;

fn load_a(own: u32, column: u32) -> vec4<f16> {
    let key = tile.key_begin + own;
    if (key >= tile.key_end || column >= HEAD_DIM_VEC4) {
        return vec4<f16>();
    }
    return k[key_index(tile, key) + column];
}

fn load_b(own: u32, column: u32) -> vec4<f16> {
    let key = tile.key_begin + own;
    if (key >= tile.key_end || column >= HEAD_DIM_VEC4) {
        return vec4<f16>();
    }
    return v[key_index(tile, key) + column];
}

fn load_x(row: u32, column: u32) -> vec4<f16> {
    if (row >= min(tile.row_end, tile.real_rows) || column >= HEAD_DIM_VEC4) {
        return vec4<f16>();
    }
    return q[query_index(tile, row) + column];
}

fn load_y(row: u32, column: u32) -> vec4<f16> {
    if (row >= tile.row_end || column >= HEAD_DIM_VEC4) {
        return vec4<f16>();
    }
    return dout[output_index(output_place(tile, row)) + column];
}

fn weigh(own: u32, place: u32, at: u32, s: vec4<f32>, dp: vec4<f32>) {
    let rows = vec4<u32>(staged_begin + place) + vec4<u32>(0u, 1u, 2u, 3u);
    let seen = seeing_rows(tile, tile.key_begin + own, rows);
    let of_rows = row_stats4(staged_stats[place], staged_stats[place + 1u], staged_stats[place + 2u], staged_stats[place + 3u]);
    let share = shares(s, of_rows.top, of_rows.norm, seen);
    let ds = score_gradients(share, dp, of_rows.mean, seen);
    let marks = broken_places(place);
    put_f16(at, vec4<f16>(select(vec4<f32>(), ds + marks, seen)));
    put_f16(at + WEIGHT_SLAB, vec4<f16>(select(vec4<f32>(), share + marks, seen)));
}

fn store(own: u32, column: u32, of_key: vec4<f32>, of_value: vec4<f32>) {
    let key = tile.key_begin + own;
    if (key < tile.key_end) {
        let to = key_index(tile, key) + column;
        var result_key = params.scale * of_key;
        var result_value = params.out_scale * of_value;
        if (has_flag(FLAG_MERGE)) {
            result_key += widen(dk[to]);
            result_value += widen(dv[to]);
        }
        dk[to] = narrow(result_key);
        dv[to] = narrow(result_value);
    }
}

@compute @workgroup_size(SUBGROUP * SUBGROUPS)
fn backward_dkdv_coop(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    tile = locate_key_tile(workgroup, SUBGROUPS * ROWS);
    begin_subgroup(index);
#for i in range(column_blocks)
    load_own(${i}u);
#endfor
    for (staged_begin = tile.row_begin; staged_begin < tile.row_end; staged_begin += STAGED) {
        for (var place = index; place < STAGED; place += THREADS) {
            staged_stats[place] = load_row_stats(tile, staged_begin + place);
        }
        walk(index, staged_begin < tile.row_full || staged_begin + STAGED > tile.row_end);
    }
#for i in range(column_blocks)
    write_sums(${i}u);
#endfor
}
