// Forward attention for GPUs within WebGPU's default limits. A workgroup has 64 threads and two buffers in workgroup memory. It
// computes 64 query rows (32 for heads wider than 128), and walks over the keys in tiles of 32.
//
// The threads form 8 groups of 8 lanes. A group owns every 8th query row, a lane every 8th key of the key tile. So a thread has 8 x
// 4 scores, and for each chunk of 32 output columns 8 rows x one vec4. Above 128 columns it has 4 rows instead of 8, so that the
// output still fits in registers.
//
// Both products read workgroup memory alike: `left` holds a chunk of q and later the weights, `right` a chunk of k and later of v.
// A thread reads 12 vec4 for 128 fma. Rows are padded to 9 vec4, so that lanes and groups use different banks. Eight threads load
// 128 consecutive bytes of global memory. q is staged again for each key tile (it stays in the cache), because keeping it would
// take all of the 16 KiB.
//
// Workgroup memory: 13824 + 2048 bytes, for any head size up to 128; less above.

#include "block.wgsl"
#include "forward_output.wgsl"
#include "online_softmax.wgsl"
#set chunks = (head_dim + 31) // 32

const CHUNK: u32 = 8u; // vec4 columns staged at a time
const STRIDE: u32 = CHUNK + 1u;
const CHUNKS: u32 = ${chunks}u;
const BLOCKS: u32 = select(2u, 1u, HEAD_DIM_VEC4 > 32u); // blocks of 4 rows per thread
const ROWS: u32 = 32u * BLOCKS;
const KEYS: u32 = 32u;

var<workgroup> left: array<vec4<f32>, ROWS * STRIDE>;
var<workgroup> right: array<vec4<f32>, KEYS * STRIDE>;
// For each row and lane, the maximum of the scores of the lane's keys; at the end the sum of their weights.
var<workgroup> partial: array<vec4<f32>, ROWS * 2u>;

struct Thread {
    group: u32,
    lane: u32,
}

// A thread's output in one chunk of columns: 4 rows in `low` and, up to 128 columns, 4 more in `high`.
struct Output {
    low: mat4x4<f32>,
    high: mat4x4<f32>,
}

// One number for each of a thread's rows.
struct PerRow {
    low: vec4<f32>,
    high: vec4<f32>,
}

fn stage_query(tile: Tile, thread: Thread, chunk: u32) {
    let column = chunk * CHUNK + thread.lane;
    for (var i = thread.group; i < ROWS; i += 8u) {
        var value = vec4<f32>();
        let row = tile.row_begin + i;
        // Phantom rows, rows beyond the tile and columns beyond the head are zero.
        if (row < min(tile.row_end, tile.real_rows) && column < HEAD_DIM_VEC4) {
            value = params.scale_log2e * widen(q[query_index(tile, row) + column]);
        }
        left[i * STRIDE + thread.lane] = value;
    }
}

fn stage_key(tile: Tile, thread: Thread, key_tile: u32, chunk: u32) {
    let column = chunk * CHUNK + thread.lane;
    for (var i = thread.group; i < KEYS; i += 8u) {
        var value = vec4<f32>();
        if (key_tile + i < tile.key_end && column < HEAD_DIM_VEC4) {
            value = widen(k[key_index(tile, key_tile + i) + column]);
        }
        right[i * STRIDE + thread.lane] = value;
    }
}

fn stage_value(tile: Tile, thread: Thread, key_tile: u32, chunk: u32) {
    let column = chunk * CHUNK + thread.lane;
    for (var i = thread.group; i < KEYS; i += 8u) {
        var value = vec4<f32>();
        if (key_tile + i < tile.key_end && column < HEAD_DIM_VEC4) {
            value = widen(v[key_index(tile, key_tile + i) + column]);
        }
        right[i * STRIDE + thread.lane] = value;
    }
}

// Column c (a vec4) of four of the thread's rows in `left`: rows group + 8 * (4 * block + i).
fn left_block(thread: Thread, block: u32, c: u32) -> mat4x4<f32> {
    let at = (thread.group + 32u * block) * STRIDE + c;
    return mat4x4<f32>(left[at], left[at + 8u * STRIDE], left[at + 16u * STRIDE], left[at + 24u * STRIDE]);
}

// Column c of four rows of `right`: rows row + 8 * i.
fn right_block(row: u32, c: u32) -> mat4x4<f32> {
    let at = row * STRIDE + c;
    return mat4x4<f32>(right[at], right[at + 8u * STRIDE], right[at + 16u * STRIDE], right[at + 24u * STRIDE]);
}

// Each lane leaves a vec4: one number for each of the block's four rows. It is stored as a whole, since a store to one component
// may touch the others.
fn keep_partial(thread: Thread, block: u32, value: vec4<f32>) {
    partial[(thread.group + 8u * block) * 8u + thread.lane] = value;
}

fn partial_max(thread: Thread, block: u32) -> vec4<f32> {
    let at = (thread.group + 8u * block) * 8u;
    let a = max(max(partial[at], partial[at + 1u]), max(partial[at + 2u], partial[at + 3u]));
    let b = max(max(partial[at + 4u], partial[at + 5u]), max(partial[at + 6u], partial[at + 7u]));
    return max(a, b);
}

fn partial_sum(thread: Thread, block: u32) -> vec4<f32> {
    let at = (thread.group + 8u * block) * 8u;
    let a = (partial[at] + partial[at + 1u]) + (partial[at + 2u] + partial[at + 3u]);
    let b = (partial[at + 4u] + partial[at + 5u]) + (partial[at + 6u] + partial[at + 7u]);
    return a + b;
}

fn keep_weights(thread: Thread, block: u32, p: mat4x4<f32>) {
    let at = (thread.group + 32u * block) * STRIDE + thread.lane;
    left[at] = p[0];
    left[at + 8u * STRIDE] = p[1];
    left[at + 16u * STRIDE] = p[2];
    left[at + 24u * STRIDE] = p[3];
}

// Rescales one chunk of the output by `shrink` and adds the weighted values of the key tile. All threads call it: it holds barriers.
fn add_values(tile: Tile, thread: Thread, key_tile: u32, chunk: u32, shrink: PerRow, output: Output) -> Output {
    var sum: Output;
    stage_value(tile, thread, key_tile, chunk);
    sum.low = scale_rows(output.low, shrink.low);
    sum.high = scale_rows(output.high, shrink.high);
    workgroupBarrier();
    if (key_tile + KEYS <= tile.key_full) {
        for (var i = 0u; i < 8u; i++) {
            let values = right_block(i, thread.lane);
            sum.low = multiply_add(sum.low, left_block(thread, 0u, i), values);
            if (BLOCKS > 1u) {
                sum.high = multiply_add(sum.high, left_block(thread, 1u, i), values);
            }
        }
    } else {
        for (var i = 0u; i < 8u; i++) {
            let values = right_block(i, thread.lane);
            sum.low = multiply_add_seen(sum.low, left_block(thread, 0u, i), values);
            if (BLOCKS > 1u) {
                sum.high = multiply_add_seen(sum.high, left_block(thread, 1u, i), values);
            }
        }
    }
    workgroupBarrier();
    return sum;
}

fn store_row(tile: Tile, row: u32, column: u32, value: vec4<f32>) {
    if (tile.row_begin + row < tile.row_end && column < HEAD_DIM_VEC4) {
        let factors = left[row];
        let to = output_index(output_place(tile, tile.row_begin + row)) + column;
        store_output(to, RowEnd(factors.x, factors.y), value);
    }
}

// Written out, because an index that is no constant would move the output out of registers.
fn store_chunk(tile: Tile, thread: Thread, chunk: u32, output: Output) {
    let column = chunk * CHUNK + thread.lane;
    store_row(tile, thread.group, column, output.low[0]);
    store_row(tile, thread.group + 8u, column, output.low[1]);
    store_row(tile, thread.group + 16u, column, output.low[2]);
    store_row(tile, thread.group + 24u, column, output.low[3]);
    if (BLOCKS > 1u) {
        store_row(tile, thread.group + 32u, column, output.high[0]);
        store_row(tile, thread.group + 40u, column, output.high[1]);
        store_row(tile, thread.group + 48u, column, output.high[2]);
        store_row(tile, thread.group + 56u, column, output.high[3]);
    }
}

@compute @workgroup_size(64)
fn forward_tile(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let tile = locate_tile(workgroup, ROWS);
    let thread = Thread(index / 8u, index % 8u);
    let rows_low = vec4<u32>(tile.row_begin + thread.group) + vec4<u32>(0u, 8u, 16u, 24u);
    var top = PerRow(vec4<f32>(SCORE_FLOOR), vec4<f32>(SCORE_FLOOR));
    var sum: PerRow;
#for chunk in range(chunks)
    var output_${chunk}: Output;
#endfor
    for (var key_tile = tile.key_begin; key_tile < tile.key_end; key_tile += KEYS) {
        var low = mat4x4<f32>();
        var high = mat4x4<f32>();
        for (var chunk = 0u; chunk < CHUNKS; chunk++) {
            stage_query(tile, thread, chunk);
            stage_key(tile, thread, key_tile, chunk);
            workgroupBarrier();
            for (var c = 0u; c < CHUNK; c++) {
                let keys = transpose(right_block(thread.lane, c));
                low = multiply_add(low, left_block(thread, 0u, c), keys);
                if (BLOCKS > 1u) {
                    high = multiply_add(high, left_block(thread, 1u, c), keys);
                }
            }
            workgroupBarrier();
        }
        if (key_tile + KEYS > tile.key_full) {
            let keys = vec4<u32>(key_tile + thread.lane) + vec4<u32>(0u, 8u, 16u, 24u);
            let causal = has_flag(FLAG_CAUSAL);
            low = mask_scores(low, rows_low, keys, tile.key_end, causal);
            high = mask_scores(high, rows_low + 32u, keys, tile.key_end, causal);
        }
        keep_partial(thread, 0u, row_max(low));
        if (BLOCKS > 1u) {
            keep_partial(thread, 1u, row_max(high));
        }
        workgroupBarrier();
        // All lanes of a group compute the same maxima; each lane keeps the sum of the weights of its own keys.
        var shrink: PerRow;
        let new_low = max(top.low, partial_max(thread, 0u));
        shrink.low = exp2(top.low - new_low);
        top.low = new_low;
        low = weights(low, new_low);
        sum.low = fma(sum.low, shrink.low, row_sum(low));
        keep_weights(thread, 0u, low);
        if (BLOCKS > 1u) {
            let new_high = max(top.high, partial_max(thread, 1u));
            shrink.high = exp2(top.high - new_high);
            top.high = new_high;
            high = weights(high, new_high);
            sum.high = fma(sum.high, shrink.high, row_sum(high));
            keep_weights(thread, 1u, high);
        }
#for i in range(chunks)
        output_${i} = add_values(tile, thread, key_tile, ${i}u, shrink, output_${i});
#endfor
    }

    // The lanes leave their sums. Then lane i of a group finishes the group's row i and leaves the row's factors for the other lanes.
    keep_partial(thread, 0u, sum.low);
    if (BLOCKS > 1u) {
        keep_partial(thread, 1u, sum.high);
    }
    workgroupBarrier();
    let block = thread.lane / 4u;
    let row = thread.group + 8u * thread.lane;
    if (row < ROWS && tile.row_begin + row < tile.row_end) {
        let tops = select(top.low, top.high, block == 1u);
        let part = thread.lane % 4u;
        let end = finish_row(tile, tile.row_begin + row, tops[part], partial_sum(thread, block)[part]);
        left[row] = vec4<f32>(end.kept, end.added, 0.0, 0.0);
    }
    workgroupBarrier();
#for i in range(chunks)
    store_chunk(tile, thread, ${i}u, output_${i});
#endfor
}
