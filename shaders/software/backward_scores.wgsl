// Products of a lane's rows with SIDE keys, in the backward kernels of the `broadcast` tier (CPUs): the scores q . k, and dout . v.
// Weights follow from both. product_lanes.wgsl multiplies, with keys as columns.

#include "backward_pairs.wgsl"
#include "product_lanes.wgsl"

const SIDE: u32 = ${8 * rows}u; // keys of a tile, and rows of a workgroup

var<private> tile: Tile;
var<private> first_row: u32; // the lane's first row
var<private> first_key: u32; // first key of the tile, the same for all lanes
var<private> gradients_at: array<vec4<u32>, ROWS / 4u>; // places of the lane's rows in dout, like left_at in q
var<private> seen_end: array<u32, 8>; // for each row of the lane: it sees the keys before this one
var<private> scores: array<vec4<f32>, ROWS * VEC4S>; // q . k; dout . v is in `sums`

// For rows and keys that do not exist, the first one of the binding is loaded. No row sees the results.
fn query_at(row: u32) -> u32 {
    return select(params.q_skip, query_index(tile, row), row < min(tile.row_end, tile.real_rows));
}

fn gradient_at(row: u32) -> u32 {
    return select(params.out_skip, output_index(output_place(tile, row)), row < tile.row_end);
}

fn find_rows(four: u32) {
    let row = first_row + 4u * four;
    left_at[four] = vec4<u32>(query_at(row), query_at(row + 1u), query_at(row + 2u), query_at(row + 3u));
    gradients_at[four] = vec4<u32>(gradient_at(row), gradient_at(row + 1u), gradient_at(row + 2u), gradient_at(row + 3u));
}

fn find_seen(r: u32) {
    seen_end[r] = end_of_seen(tile, first_row + r);
}

fn find_keys(pair: u32) {
    let key = first_key + 8u * pair + lane;
    right_at[pair] = select(0u, key_index(tile, key), key < tile.key_end);
}

fn load_queries(four: u32) {
    let at = left_at[four] + left_offset;
    keep_left(four, mat4x4<f32>(widen(q[at.x]), widen(q[at.y]), widen(q[at.z]), widen(q[at.w])));
}

fn load_gradients(four: u32) {
    let at = gradients_at[four] + left_offset;
    keep_left(four, mat4x4<f32>(widen(dout[at.x]), widen(dout[at.y]), widen(dout[at.z]), widen(dout[at.w])));
}

fn add_keys(pair: u32) {
    add_columns(pair, widen(k[right_at[pair] + right_offset]));
}

fn add_values(pair: u32) {
    add_columns(pair, widen(v[right_at[pair] + right_offset]));
}

fn add_scores(column: u32) {
    left_offset = column;
    right_offset = column;
#for i in range(rows // 4)
    load_queries(${i}u);
#endfor
#for i in range(vec4s // 2)
    add_keys(${i}u);
#endfor
}

fn add_products(column: u32) {
    left_offset = column;
    right_offset = column;
#for i in range(rows // 4)
    load_gradients(${i}u);
#endfor
#for i in range(vec4s // 2)
    add_values(${i}u);
#endfor
}

fn keep_score(i: u32) {
    scores[i] = sums[i];
    sums[i] = vec4<f32>();
}

fn clear_sum(i: u32) {
    sums[i] = vec4<f32>();
}

// Computes scores and dout . v of the lane's rows and the keys from first_key on. find_rows comes before.
fn score_keys() {
#for i in range(vec4s // 2)
    find_keys(${i}u);
#endfor
#for i in range(rows * vec4s)
    clear_sum(${i}u);
#endfor
    for (var column = 0u; column < HEAD_DIM_VEC4; column += DEPTH / 4u) {
        add_scores(column);
#if depth > 4
        add_scores(column + 1u);
#endif
    }
#for i in range(rows * vec4s)
    keep_score(${i}u);
#endfor
    for (var column = 0u; column < HEAD_DIM_VEC4; column += DEPTH / 4u) {
        add_products(column);
#if depth > 4
        add_products(column + 1u);
#endif
    }
}

// Which of four pairs see each other.
fn seen_of(i: u32) -> vec4<bool> {
    return vec4<u32>(first_key + 4u * (i % VEC4S)) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(seen_end[i / VEC4S]);
}

// The weights of four pairs. A pair that sees each other gets NaN if its score or dout . v is not finite, as when one of its
// vectors is not.
fn weights_of_pairs(i: u32, top: f32, seen: vec4<bool>) -> vec4<f32> {
    // Rows without a query have scores of 0.
    let score = select(vec4<f32>(), scores[i], first_row + i / VEC4S < tile.real_rows);
    let weight = weights_of(score, vec4<f32>(top), seen);
    let spoiled = seen & !(is_finite(score) & is_finite(sums[i]));
    return bitcast<vec4<f32>>(select(bitcast<vec4<u32>>(weight), vec4<u32>(0x7fc00000u), spoiled));
}
