// Gradient of the queries of one branch, with cooperative matrices: subgroups own rows and walk over their keys, as
// backward_coop.wgsl says.
//
//   s = q k^T    dp = dout v^T    ds = p (dp - mean)    dq += scale ds k
//
// p is the weight's share of the row's softmax, mean the row's mean of dout . v.
//
// Each row of ds sums to 0, so whatever all keys have in common cancels in dq. Rounding ds to f16 would break this, and keys may
// have a large part in common. So ds is split into two f16 numbers that both multiply the keys: the first is ds cut to f16, the
// second the rest times REST_SCALE.

#include "backward_coop.wgsl"
#set column_blocks = (head_dim + size - 1) // size

@group(0) @binding(5) var<storage, read> row_stats: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read_write> dq: array<Stored4>;

const PAIR_SLABS: u32 = 2u;
const SECOND_OF_Y: u32 = 0u;
const REST_SCALE: f32 = 1024.0; // 2^10: brings the rest to about the size of the first number

var<workgroup> own_stats: array<RowStats, SUBGROUPS * ROWS>;

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

// Numbers cut to the leading bits that fit in an f16; 0 for numbers below the smallest normal f16. Computed with integers, because
// a compiler may drop a conversion to f16 and back.
fn f16_part(x: vec4<f32>) -> vec4<f32> {
    let leading = bitcast<vec4<f32>>(bitcast<vec4<u32>>(x) & vec4<u32>(0xffffe000u));
    return select(leading, vec4<f32>(), abs(x) < vec4<f32>(6.2e-5));
}

fn weigh(own: u32, place: u32, at: u32, s: vec4<f32>, dp: vec4<f32>) {
    let keys = vec4<u32>(staged_begin + place) + vec4<u32>(0u, 1u, 2u, 3u);
    let seen = seen_keys(tile, tile.row_begin + own, keys);
    let of_row = own_stats[own];
    let share = shares(s, vec4<f32>(of_row.top), vec4<f32>(of_row.norm), seen);
    let ds = score_gradients(share, dp, vec4<f32>(of_row.mean), seen);
    let half = f16_part(ds);
    put_f16(at, vec4<f16>(select(vec4<f32>(), half + broken_places(place), seen)));
    put_f16(at + WEIGHT_SLAB, vec4<f16>(REST_SCALE * (ds - half)));
}

fn store(own: u32, column: u32, value: vec4<f32>, rest: vec4<f32>) {
    let row = tile.row_begin + own;
    if (row < min(tile.row_end, tile.real_rows)) {
        let to = query_index(tile, row) + column;
        var result = params.scale * fma(rest, vec4<f32>(1.0 / REST_SCALE), value);
        if (has_flag(FLAG_MERGE)) {
            result += widen(dq[to]);
        }
        dq[to] = narrow(result);
    }
}

@compute @workgroup_size(SUBGROUP * SUBGROUPS)
fn backward_dq_coop(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    tile = locate_tile(workgroup, SUBGROUPS * ROWS);
    begin_subgroup(index);
    for (var own = index; own < SUBGROUPS * ROWS; own += THREADS) {
        own_stats[own] = load_row_stats(tile, tile.row_begin + own);
    }
#for i in range(column_blocks)
    load_own(${i}u);
#endfor
    for (staged_begin = tile.key_begin; staged_begin < tile.key_end; staged_begin += STAGED) {
        walk(index, staged_begin + STAGED > tile.key_full);
    }
#for i in range(column_blocks)
    write_sums(${i}u);
#endfor
}
