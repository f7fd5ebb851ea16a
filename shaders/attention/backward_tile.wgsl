// What the backward kernels of the `tile` tier have in common: tiles of 32 rows by 32 keys in workgroup memory, and 64 threads in 8
// groups of 8 lanes.
//
// Products of two operands (`products`) go through chunks of 32 columns: `left` and `right` each hold a chunk of 32 vectors, and a
// thread sums 4 x 4 dot products, of the left vectors group + 8 i with the right vectors lane + 8 j. Products that have such a 4 x
// 4 block as the left factor (`add_product`, for dq += ds k and the like) keep the block in `left`, one vec4 for each lane, and
// read right vectors that are 8 apart, like the columns of the block.
//
// Workgroup memory: 9216 bytes for every head size.

#include "backward_pairs.wgsl"
#include "block.wgsl"

const CHUNK: u32 = 8u; // vec4 columns staged at a time
const STRIDE: u32 = CHUNK + 1u; // padded, so that lanes and groups use different banks
const CHUNKS: u32 = ${(head_dim + 31) // 32}u;
const SIDE: u32 = 32u; // rows, and keys, of a tile

var<workgroup> left: array<vec4<f32>, SIDE * STRIDE>;
var<workgroup> right: array<vec4<f32>, SIDE * STRIDE>;

struct Thread {
    group: u32,
    lane: u32,
}

const QUERY: u32 = 0u;
const DOUT: u32 = 1u;
const KEY: u32 = 2u;
const VALUE: u32 = 3u;

// One vec4 of an operand; zero outside of the tile or the head, and for the query of a phantom row.
fn operand(tile: Tile, source: u32, row: u32, column: u32) -> vec4<f32> {
    var value = vec4<f32>();
    if (column < HEAD_DIM_VEC4) {
        switch (source) {
            case QUERY: {
                if (row < min(tile.row_end, tile.real_rows)) { value = widen(q[query_index(tile, row) + column]); }
            }
            case DOUT: {
                if (row < tile.row_end) { value = widen(dout[output_index(output_place(tile, row)) + column]); }
            }
            case KEY: {
                if (row < tile.key_end) { value = widen(k[key_index(tile, row) + column]); }
            }
            default: {
                if (row < tile.key_end) { value = widen(v[key_index(tile, row) + column]); }
            }
        }
    }
    return value;
}

fn stage_left(tile: Tile, thread: Thread, source: u32, first: u32, chunk: u32) {
    for (var i = thread.group; i < SIDE; i += 8u) {
        left[i * STRIDE + thread.lane] = operand(tile, source, first + i, chunk * CHUNK + thread.lane);
    }
}

fn stage_right(tile: Tile, thread: Thread, source: u32, first: u32, chunk: u32) {
    for (var i = thread.group; i < SIDE; i += 8u) {
        right[i * STRIDE + thread.lane] = operand(tile, source, first + i, chunk * CHUNK + thread.lane);
    }
}

// Column c (a vec4) of the four vectors group + 8 i of `left`.
fn left_block(thread: Thread, c: u32) -> mat4x4<f32> {
    let at = thread.group * STRIDE + c;
    return mat4x4<f32>(left[at], left[at + 8u * STRIDE], left[at + 16u * STRIDE], left[at + 24u * STRIDE]);
}

// Column c of the four vectors first + 8 i of `right`.
fn right_block(first: u32, c: u32) -> mat4x4<f32> {
    let at = first * STRIDE + c;
    return mat4x4<f32>(right[at], right[at + 8u * STRIDE], right[at + 16u * STRIDE], right[at + 24u * STRIDE]);
}

// Dot products of the thread's 4 x 4 vectors of both operands. All threads call it: it holds barriers.
fn products(tile: Tile, thread: Thread, left_source: u32, left_first: u32, right_source: u32, right_first: u32) -> mat4x4<f32> {
    var block = mat4x4<f32>();
    for (var chunk = 0u; chunk < CHUNKS; chunk++) {
        stage_left(tile, thread, left_source, left_first, chunk);
        stage_right(tile, thread, right_source, right_first, chunk);
        workgroupBarrier();
        for (var c = 0u; c < CHUNK; c++) {
            block = multiply_add(block, left_block(thread, c), transpose(right_block(thread.lane, c)));
        }
        workgroupBarrier();
    }
    return block;
}

// Stores a block as the left factor of add_product.
fn keep_block(thread: Thread, block: mat4x4<f32>) {
    let at = thread.group * STRIDE + thread.lane;
    left[at] = block[0];
    left[at + 8u * STRIDE] = block[1];
    left[at + 16u * STRIDE] = block[2];
    left[at + 24u * STRIDE] = block[3];
}

// Adds the product of the kept block and one chunk of columns of an operand. `all_seen` says that all pairs of the tile see each
// other. Otherwise vectors with a weight of 0 are left out, because they may be NaN. All threads call it: it holds barriers.
fn add_product(tile: Tile, thread: Thread, source: u32, first: u32, chunk: u32, all_seen: bool, sum: mat4x4<f32>) -> mat4x4<f32> {
    stage_right(tile, thread, source, first, chunk);
    workgroupBarrier();
    var total = sum;
    if (all_seen) {
        for (var i = 0u; i < 8u; i++) {
            total = multiply_add(total, left_block(thread, i), right_block(i, thread.lane));
        }
    } else {
        for (var i = 0u; i < 8u; i++) {
            total = multiply_add_seen(total, left_block(thread, i), right_block(i, thread.lane));
        }
    }
    workgroupBarrier();
    return total;
}

// The four vectors of a thread, 8 apart, in the order of its blocks.
fn vectors_of(first: u32) -> vec4<u32> {
    return vec4<u32>(first) + vec4<u32>(0u, 8u, 16u, 24u);
}
