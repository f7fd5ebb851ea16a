// Forward attention with cooperative matrices (tensor cores), for tensors stored as f16.
//
// A subgroup owns ROWS query rows and keeps their queries and output in matrices. All subgroups of the workgroup walk over the same
// keys, STAGED at a time, which are staged in workgroup memory. In each step
//
//   scores = q k^T      stored to the subgroup's slab of workgroup memory, because a matrix gives no access to its elements
//   softmax             each lane owns whole rows of the slab, so lanes exchange nothing; weights go back to memory as f16
//   output += weights v
//
// The output is rescaled only when the maximum of a row has grown by more than MOST_GROWTH since it was rescaled last. Until then
// weights may be as large as 2^MOST_GROWTH. A barrier stands between each store of a matrix and the reads of it, even within one
// subgroup, because such stores carry no memory semantics of their own. Strides are padded, so that rows begin in different banks.
// Branches around matrix operations depend only on constants and on values that are uniform over the workgroup.

#include "forward_output.wgsl"
#include "matrices.wgsl"
#include "online_softmax.wgsl"
#include "staging.wgsl"
#set row_blocks = rows // size
#set column_blocks = (head_dim + size - 1) // size
#set staged_blocks = staged // size

const SUBGROUP: u32 = ${subgroup}u; // lanes of a subgroup
const SUBGROUPS: u32 = ${subgroups}u;
const ROWS: u32 = ${rows}u;
const STAGED: u32 = ${staged}u;

const DIM_VEC4: u32 = (4u * HEAD_DIM_VEC4 + SIZE - 1u) / SIZE * SIZE / 4u; // columns of a head, padded to whole matrices
const COLUMN_BLOCKS: u32 = ${column_blocks}u;
const ROW_BLOCKS: u32 = ${row_blocks}u;
const KEY_BLOCKS: u32 = ${staged_blocks}u;
const LANE_ROWS: u32 = ROWS / SUBGROUP;
const THREADS: u32 = SUBGROUP * SUBGROUPS;
const MOST_GROWTH: f32 = 8.0; // in log2 units

// Strides and slabs in vec4.
const VECTOR_STRIDE: u32 = DIM_VEC4 + 2u;
const WEIGHT_STRIDE: u32 = STAGED / 4u + 2u;
const SCORE_STRIDE: u32 = STAGED / 4u + 1u;
const VALUES: u32 = STAGED * VECTOR_STRIDE; // place of the values in f16s: after the keys
const WEIGHTS: u32 = 2u * STAGED * VECTOR_STRIDE; // place of the weights: after the values, a slab for each subgroup
const F16_VEC4S: u32 = WEIGHTS + SUBGROUPS * ROWS * WEIGHT_STRIDE;
const F32_VEC4S: u32 = SUBGROUPS * ROWS * SCORE_STRIDE;

var<workgroup> grown: u32; // 1 when the output has to be rescaled, because the maximum of some row has grown too much
var<workgroup> ends: array<RowEnd, SUBGROUPS * ROWS>;

var<private> tile: Tile;
var<private> subgroup: u32;
var<private> lane: u32;
var<private> weights_at: u32; // place of the subgroup's slab of weights in f16s
var<private> scores_at: u32; // place of the subgroup's slab of scores in f32s
var<private> key_tile: u32;

var<private> query: array<Left, ROW_BLOCKS * COLUMN_BLOCKS>;
var<private> output: array<Sum, ROW_BLOCKS * COLUMN_BLOCKS>;
var<private> scores: array<Sum, ROW_BLOCKS * KEY_BLOCKS>;

// For each row of the lane: the number that weights are relative to, the sum of the weights, the factor on the output.
var<private> top: array<f32, LANE_ROWS>;
var<private> sum: array<f32, LANE_ROWS>;
var<private> shrink: array<f32, LANE_ROWS>;

// Row of the subgroup's slab that is row i of the lane.
fn slab_row(i: u32) -> u32 {
    return i * SUBGROUP + lane;
}

// Loads one column of matrices of the queries, by way of the slab of weights. All threads call it: it holds barriers.
fn load_query(block: u32) {
    for (var item = lane; item < ROWS * SIZE / 4u; item += SUBGROUP) {
        let row = tile.row_begin + subgroup * ROWS + item / (SIZE / 4u);
        let place = item % (SIZE / 4u);
        let column = block * (SIZE / 4u) + place;
        var value = vec4<f16>();
        if (row < min(tile.row_end, tile.real_rows) && column < HEAD_DIM_VEC4) {
            value = q[query_index(tile, row) + column];
        }
        put_f16(weights_at + item / (SIZE / 4u) * WEIGHT_STRIDE + place, value);
    }
    workgroupBarrier();
#for i in range(row_blocks)
    load_query_block(block, ${i}u);
#endfor
    workgroupBarrier();
}

fn load_query_block(block: u32, row_block: u32) {
    let at = weights_at + row_block * SIZE * WEIGHT_STRIDE;
    query[row_block * COLUMN_BLOCKS + block] = coopLoadT<Left>(&f16s[at * VEC4], WEIGHT_STRIDE * VEC4);
}

// Stages STAGED keys and values, zeros after the last one. `partly` says that some rows do not see all of them.
fn stage(index: u32, partly: bool) {
    for (var item = index; item < STAGED * DIM_VEC4; item += THREADS) {
        let place = item / DIM_VEC4;
        let column = item % DIM_VEC4;
        var key = vec4<f16>();
        var value = vec4<f16>();
        if (key_tile + place < tile.key_end && column < HEAD_DIM_VEC4) {
            let source = key_index(tile, key_tile + place) + column;
            key = k[source];
            value = v[source];
        }
        if (partly && !(is_finite(key) && is_finite(value))) {
            key = vec4<f16>();
            value = vec4<f16>();
            mark_broken(place);
        }
        put_f16(place * VECTOR_STRIDE + column, key);
        put_f16(VALUES + place * VECTOR_STRIDE + column, value);
    }
}

fn clear_scores(i: u32) {
    scores[i] = Sum();
}

// Adds the products with one matrix of keys, which is transposed as it is loaded. i numbers the matrices: columns of the head, then keys.
fn add_scores(i: u32) {
    let block = i / KEY_BLOCKS;
    let key_block = i % KEY_BLOCKS;
    let at = key_block * SIZE * VECTOR_STRIDE + block * SIZE / 4u;
    let keys = coopLoad<Right>(&f16s[at * VEC4], VECTOR_STRIDE * VEC4);
#for i in range(row_blocks)
    add_scores_block(block, key_block, ${i}u, keys);
#endfor
}

fn add_scores_block(block: u32, key_block: u32, row_block: u32, keys: Right) {
    let i = row_block * KEY_BLOCKS + key_block;
    scores[i] = coopMultiplyAdd(query[row_block * COLUMN_BLOCKS + block], keys, scores[i]);
}

fn store_scores(i: u32) {
    let at = scores_at + i / KEY_BLOCKS * SIZE * SCORE_STRIDE + i % KEY_BLOCKS * SIZE / 4u;
    coopStoreT(scores[i], &f32s[at * VEC4], SCORE_STRIDE * VEC4);
}

// Scores of four keys in log2 units; SCORE_FLOOR for keys from `last` on, which the row does not see.
fn row_scores(at: u32, c: u32, last: u32, partly: bool) -> vec4<f32> {
    var s = params.scale_log2e * get_f32(at + c);
    if (partly) {
        let places = vec4<u32>(4u * c) + vec4<u32>(0u, 1u, 2u, 3u);
        s += broken_places(4u * c);
        s = select(vec4<f32>(SCORE_FLOOR), s, vec4<u32>(key_tile) + places < vec4<u32>(last));
    }
    return s;
}

// Turns the scores of the lane's row i into weights.
fn soften(i: u32, partly: bool) {
    let row = tile.row_begin + subgroup * ROWS + slab_row(i);
    let last = select(tile.key_end, min(tile.key_end, row + 1u), has_flag(FLAG_CAUSAL));
    let at = scores_at + slab_row(i) * SCORE_STRIDE;
    var most = vec4<f32>(SCORE_FLOOR);
    for (var c = 0u; c < STAGED / 4u; c++) {
        most = max(most, row_scores(at, c, last, partly));
    }
    let highest = max(top[i], max(max(most.x, most.y), max(most.z, most.w)));
    shrink[i] = 1.0;
    if (sum[i] == 0.0) {
        // The row has no weights yet, so nothing has to be rescaled.
        top[i] = highest;
    } else if (highest - top[i] > MOST_GROWTH) {
        shrink[i] = exp2(top[i] - highest);
        top[i] = highest;
        grown = 1u;
    }
    var total = vec4<f32>();
    for (var c = 0u; c < STAGED / 4u; c++) {
        let w = weight(row_scores(at, c, last, partly), top[i]);
        total += w;
        put_f16(weights_at + slab_row(i) * WEIGHT_STRIDE + c, vec4<f16>(w));
    }
    sum[i] = fma(sum[i], shrink[i], (total.x + total.y) + (total.z + total.w));
}

// Stores one column of matrices of the output to the slab of scores. The caller adds a barrier.
fn store_output_column(block: u32) {
#for i in range(row_blocks)
    store_output_block(block, ${i}u);
#endfor
}

fn store_output_block(block: u32, row_block: u32) {
    let at = scores_at + row_block * SIZE * SCORE_STRIDE;
    coopStoreT(output[row_block * COLUMN_BLOCKS + block], &f32s[at * VEC4], SCORE_STRIDE * VEC4);
}

fn load_output_block(block: u32, row_block: u32) {
    let at = scores_at + row_block * SIZE * SCORE_STRIDE;
    output[row_block * COLUMN_BLOCKS + block] = coopLoadT<Sum>(&f32s[at * VEC4], SCORE_STRIDE * VEC4);
}

// Rescales the rows of one column of matrices of the output. All threads call it: it holds barriers.
fn shrink_output(block: u32) {
    store_output_column(block);
    workgroupBarrier();
    for (var i = 0u; i < LANE_ROWS; i++) {
        let at = scores_at + slab_row(i) * SCORE_STRIDE;
        for (var c = 0u; c < SIZE / 4u; c++) {
            put_f32(at + c, shrink[i] * get_f32(at + c));
        }
    }
    workgroupBarrier();
#for i in range(row_blocks)
    load_output_block(block, ${i}u);
#endfor
    workgroupBarrier();
}

// Adds the products with one matrix of values. i numbers the matrices: keys, then columns of the head.
fn add_values(i: u32) {
    let key_block = i / COLUMN_BLOCKS;
    let block = i % COLUMN_BLOCKS;
    let at = VALUES + key_block * SIZE * VECTOR_STRIDE + block * SIZE / 4u;
    let values = coopLoadT<Right>(&f16s[at * VEC4], VECTOR_STRIDE * VEC4);
#for i in range(row_blocks)
    add_values_block(block, key_block, ${i}u, values);
#endfor
}

fn add_values_block(block: u32, key_block: u32, row_block: u32, values: Right) {
    let at = weights_at + row_block * SIZE * WEIGHT_STRIDE + key_block * SIZE / 4u;
    let weights = coopLoadT<Left>(&f16s[at * VEC4], WEIGHT_STRIDE * VEC4);
    let i = row_block * COLUMN_BLOCKS + block;
    output[i] = coopMultiplyAdd(weights, values, output[i]);
}

// Writes one column of matrices of the output to memory; neighbouring lanes write neighbouring vec4. All threads call it: it holds
// barriers.
fn write_output(block: u32) {
    store_output_column(block);
    workgroupBarrier();
    for (var item = lane; item < ROWS * SIZE / 4u; item += SUBGROUP) {
        let slab = item / (SIZE / 4u);
        let place = item % (SIZE / 4u);
        let own = subgroup * ROWS + slab;
        let column = block * (SIZE / 4u) + place;
        if (tile.row_begin + own < tile.row_end && column < HEAD_DIM_VEC4) {
            let to = output_index(output_place(tile, tile.row_begin + own)) + column;
            store_output(to, ends[own], get_f32(scores_at + slab * SCORE_STRIDE + place));
        }
    }
    workgroupBarrier();
}

@compute @workgroup_size(SUBGROUP * SUBGROUPS)
fn forward_coop(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    tile = locate_tile(workgroup, SUBGROUPS * ROWS);
    subgroup = index / SUBGROUP;
    lane = index % SUBGROUP;
    weights_at = WEIGHTS + subgroup * ROWS * WEIGHT_STRIDE;
    scores_at = subgroup * ROWS * SCORE_STRIDE;
    for (var i = 0u; i < LANE_ROWS; i++) {
        top[i] = SCORE_FLOOR;
    }
    clear_broken(index, THREADS);
    if (index == 0u) {
        grown = 0u;
    }
#for i in range(column_blocks)
    load_query(${i}u);
#endfor
    for (key_tile = tile.key_begin; key_tile < tile.key_end; key_tile += STAGED) {
        let partly = key_tile + STAGED > tile.key_full;
        stage(index, partly);
        workgroupBarrier();
#for i in range(row_blocks * staged_blocks)
        clear_scores(${i}u);
#endfor
#for i in range(column_blocks * staged_blocks)
        add_scores(${i}u);
#endfor
#for i in range(row_blocks * staged_blocks)
        store_scores(${i}u);
#endfor
        workgroupBarrier();
        for (var i = 0u; i < LANE_ROWS; i++) {
            soften(i, partly);
        }
        // workgroupUniformLoad has a barrier before and after the load.
        if (workgroupUniformLoad(&grown) != 0u) {
#for i in range(column_blocks)
            shrink_output(${i}u);
#endfor
        }
#for i in range(column_blocks * staged_blocks)
        add_values(${i}u);
#endfor
        clear_broken(index, THREADS);
        if (index == 0u) {
            grown = 0u;
        }
        workgroupBarrier();
    }
    for (var i = 0u; i < LANE_ROWS; i++) {
        let own = subgroup * ROWS + slab_row(i);
        if (tile.row_begin + own < tile.row_end) {
            ends[own] = finish_row(tile, tile.row_begin + own, top[i], sum[i]);
        }
    }
    workgroupBarrier();
#for i in range(column_blocks)
    write_output(${i}u);
#endfor
}
