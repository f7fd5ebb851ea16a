// A gradient of a window of one branch as a matrix product, on CPUs of the `broadcast` tier. `gradient` says which: "dq" (dq = ds
// k), "dk" (dk = ds^T q) or "dv" (dv = p^T dout). The matrices ds and p are those that backward_weights_broadcast.wgsl wrote. A
// workgroup, one subgroup of eight lanes, computes SIDE rows (keys for dk and dv) and VEC4S vec4 of columns; product_lanes.wgsl
// multiplies.

#include "backward_window.wgsl"
#include "geometry.wgsl"
#include "product_lanes.wgsl"

const SIDE: u32 = ${8 * rows}u;

@group(0) @binding(1) var<storage, read> weights: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> vectors: array<Stored4>;
@group(0) @binding(3) var<storage, read_write> gradient: array<Stored4>;

var<private> tile: Tile;
var<private> matrix: u32; // place of ds or p of this item, segment and head in `weights`
var<private> stride: u32; // vec4 from row to row of the weights
var<private> first_row: u32; // the lane's first row (or key), in the window
var<private> num_rows: u32; // rows of the window from there on
var<private> first_vec4: u32; // first vec4 of columns, the same for all lanes
var<private> place: u32; // index of that vec4 of the lane's first row in `gradient`

// Index of row `row` of the window in `gradient`.
fn own_index(row: u32) -> u32 {
#if gradient == "dq"
    return query_index(tile, tile.row_begin + row);
#else
    return key_index(tile, tile.key_begin + row);
#endif
}

// Index of vector `number` of the window in `vectors`.
fn vector_index(number: u32) -> u32 {
#if gradient == "dq"
    return key_index(tile, tile.key_begin + number);
#elif gradient == "dk"
    return query_index(tile, tile.row_begin + number);
#else
    return output_index(output_place(tile, tile.row_begin + number));
#endif
}

// Vec4 from one row of the window to the next in the tensors of queries and outputs.
fn query_stride() -> u32 {
    return params.dilation_rate * params.num_heads * HEAD_DIM_VEC4;
}

// The same in those of keys.
fn key_stride() -> u32 {
    return params.key_row_stride;
}

#if gradient == "dq"
fn own_stride() -> u32 {
    return query_stride();
}

fn vector_stride() -> u32 {
    return key_stride();
}
#else
fn own_stride() -> u32 {
    return key_stride();
}

fn vector_stride() -> u32 {
    return query_stride();
}
#endif

fn find_left(four: u32) {
#if transpose_a
    left_at[four] = vec4<u32>(matrix + first_row / 4u + four) + vec4<u32>(0u, 1u, 2u, 3u) * stride;
#else
    left_at[four] = vec4<u32>(matrix) + (vec4<u32>(first_row + 4u * four) + vec4<u32>(0u, 1u, 2u, 3u)) * stride;
#endif
}

fn load_left(four: u32) {
    let at = left_at[four] + left_offset;
    keep_left(four, mat4x4<f32>(weights[at.x], weights[at.y], weights[at.z], weights[at.w]));
}

fn find_right(pair: u32) {
    right_at[pair] = min(first_vec4 + 2u * pair + lane / 4u, HEAD_DIM_VEC4 - 1u);
}

fn add_pair(pair: u32) {
    let own = widen(vectors[right_at[pair] + right_offset]);
    // NaN and infinity count as 0: otherwise they would reach rows that weigh them with 0. Rows that do see them have a weight of NaN.
    add_columns(pair, select(vec4<f32>(), own, is_finite(own)));
}

// Adds four weighted vectors, from `number` on. Vectors after the last one have weights of 0.
fn add_four(vectors_at: u32, number: u32, last: u32) {
#if transpose_a
    left_offset = number * stride;
#else
    left_offset = number / 4u;
#endif
    right_offset = vectors_at + min(number + lane % 4u, last) * vector_stride();
#for i in range(rows // 4)
    load_left(${i}u);
#endfor
#for i in range(vec4s // 2)
    add_pair(${i}u);
#endfor
}

fn exists(i: u32) -> bool {
    return i / VEC4S < num_rows && first_vec4 + i % VEC4S < HEAD_DIM_VEC4;
}

fn load_sum(i: u32) {
    if (exists(i)) {
        sums[i] = widen(gradient[place + i / VEC4S * own_stride() + i % VEC4S]);
    }
}

fn store_sum(i: u32) {
    if (exists(i)) {
        gradient[place + i / VEC4S * own_stride() + i % VEC4S] = narrow(sums[i]);
    }
}

@compute @workgroup_size(LANES)
fn backward_gradient_broadcast(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(subgroup_invocation_id) subgroup_lane: u32) {
    lane = subgroup_lane;
    let column_tiles = (HEAD_DIM_VEC4 + VEC4S - 1u) / VEC4S;
#if gradient == "dq"
    let row_tiles = tiles_in(window_rows());
#else
    let row_tiles = tiles_in(window_keys());
#endif
    tile = locate_part(workgroup, row_tiles * column_tiles);
    let tile_row = part / column_tiles * SIDE;
    first_row = tile_row + ROWS * lane;
    first_vec4 = part % column_tiles * VEC4S;

    let queries_end = max(tile.row_begin, min(tile.row_end, tile.real_rows));
    var own_count = tile.key_end - tile.key_begin;
    var count = tile.row_end - tile.row_begin;
    var begin = 0u;
#if gradient == "dq"
    own_count = queries_end - tile.row_begin;
    count = tile.key_end - tile.key_begin;
#elif gradient == "dk"
    count = queries_end - tile.row_begin;
#endif
    let last = max(count, 1u) - 1u;
    if (has_flag(FLAG_CAUSAL)) {
#if gradient == "dq"
        let end = tile.row_begin + tile_row + SIDE;
        count = min(count, max(end, tile.key_begin) - tile.key_begin);
#else
        let first = tile.key_begin + tile_row;
        begin = (max(first, tile.row_begin) - tile.row_begin) / DEPTH * DEPTH;
#endif
    }
    num_rows = max(own_count, first_row) - first_row;
    place = own_index(first_row) + first_vec4;
    if (has_flag(FLAG_MERGE)) {
#for i in range(rows * vec4s)
        load_sum(${i}u);
#endfor
    }

    stride = weights_stride();
    matrix = unit * 2u * weights_size();
#if gradient == "dv"
    matrix += weights_size();
#endif
#for i in range(rows // 4)
    find_left(${i}u);
#endfor
#for i in range(vec4s // 2)
    find_right(${i}u);
#endfor
    let vectors_at = vector_index(0u);
    for (var number = begin; number < count; number += DEPTH) {
        add_four(vectors_at, number, last);
#if depth > 4
        add_four(vectors_at, number + 4u, last);
#endif
    }
#for i in range(rows * vec4s)
    store_sum(${i}u);
#endfor
}
