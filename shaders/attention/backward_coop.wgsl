// Tiles of the backward kernels with cooperative matrices (tensor cores), for tensors stored as f16.
//
// A subgroup owns ROWS vectors of two operands a and b (q and dout of rows, or k and v of keys) in its matrices. All subgroups
// of the workgroup walk over the vectors that these meet, x and y (k and v, or q and dout), STAGED at a time in workgroup
// memory. For each step
//
//   first = a x^T    second = b y^T    stored to slabs of the subgroup, for a matrix gives no access to its elements
//   the lanes turn both into weights of pairs, of each vec4 in turn, in f16
//   of_a += weights x    and, for keys, of_b += other weights y; for rows, of_b += what f16 has left of the weights x
//
// Between a store of a matrix and what reads it there is a barrier, also within one subgroup: stores of matrices carry no
// memory semantics of their own. Strides are padded, so that rows begin in different banks.
// A kernel calls load_own for each column of matrices, walk for each step, and write_sums for each column. It has PAIR_SLABS (of weights: 1 or 2), SECOND_OF_Y (1 when the second ones are weights of y, 0 of x too), load_a, load_b,
// load_x, load_y, weigh and store, and calls load_own, add_sums and write_sums for each of theirs.

#include "backward_pairs.wgsl"
#include "matrices.wgsl"
#include "staging.wgsl"
#set row_blocks = rows // size
#set column_blocks = (head_dim + size - 1) // size
#set staged_blocks = staged // size

const SUBGROUP: u32 = ${subgroup}u; // its lanes
const SUBGROUPS: u32 = ${subgroups}u;
const ROWS: u32 = ${rows}u;
const STAGED: u32 = ${staged}u;

const DIM_VEC4: u32 = (4u * HEAD_DIM_VEC4 + SIZE - 1u) / SIZE * SIZE / 4u; // columns, filled up to whole matrices
const COLUMN_BLOCKS: u32 = ${column_blocks}u;
const ROW_BLOCKS: u32 = ${row_blocks}u;
const STAGED_BLOCKS: u32 = ${staged_blocks}u;
const THREADS: u32 = SUBGROUP * SUBGROUPS;

// Strides and slabs in vec4.
const VECTOR_STRIDE: u32 = DIM_VEC4 + 2u;
const WEIGHT_STRIDE: u32 = STAGED / 4u + 2u;
const SCORE_STRIDE: u32 = STAGED / 4u + 1u;
const Y: u32 = STAGED * VECTOR_STRIDE; // after x
const WEIGHTS: u32 = 2u * STAGED * VECTOR_STRIDE; // then slabs for each subgroup
const WEIGHT_SLAB: u32 = ROWS * WEIGHT_STRIDE;
const SCORE_SLAB: u32 = ROWS * SCORE_STRIDE;
const F16_VEC4S: u32 = WEIGHTS + SUBGROUPS * PAIR_SLABS * WEIGHT_SLAB;
const F32_VEC4S: u32 = SUBGROUPS * 2u * SCORE_SLAB;

var<private> tile: Tile;
var<private> own_begin: u32; // number of the subgroup's first vector
var<private> staged_begin: u32; // number of the first staged one
var<private> lane: u32;
var<private> weights_at: u32; // of the subgroup, in f16s
var<private> scores_at: u32; // of the subgroup, in f32s

var<private> own_a: array<Left, ROW_BLOCKS * COLUMN_BLOCKS>;
var<private> own_b: array<Left, ROW_BLOCKS * COLUMN_BLOCKS>;
var<private> first: array<Sum, ROW_BLOCKS * STAGED_BLOCKS>;
var<private> second: array<Sum, ROW_BLOCKS * STAGED_BLOCKS>;
var<private> of_a: array<Sum, ROW_BLOCKS * COLUMN_BLOCKS>;
var<private> of_b: array<Sum, ROW_BLOCKS * COLUMN_BLOCKS>;

fn begin_subgroup(index: u32) {
    let subgroup = index / SUBGROUP;
    lane = index % SUBGROUP;
    own_begin = subgroup * ROWS;
    weights_at = WEIGHTS + subgroup * PAIR_SLABS * WEIGHT_SLAB;
    scores_at = subgroup * 2u * SCORE_SLAB;
    clear_broken(index, THREADS);
}

// One column of matrices of what the subgroup owns, through its slab for weights. Holds barriers.
fn load_own(block: u32) {
    for (var item = lane; item < ROWS * SIZE / 4u; item += SUBGROUP) {
        let row = item / (SIZE / 4u);
        let place = item % (SIZE / 4u);
        put_f16(weights_at + row * WEIGHT_STRIDE + place, load_a(own_begin + row, block * (SIZE / 4u) + place));
    }
    workgroupBarrier();
#for i in range(row_blocks)
    load_own_a_block(block, ${i}u);
#endfor
    workgroupBarrier();
    for (var item = lane; item < ROWS * SIZE / 4u; item += SUBGROUP) {
        let row = item / (SIZE / 4u);
        let place = item % (SIZE / 4u);
        put_f16(weights_at + row * WEIGHT_STRIDE + place, load_b(own_begin + row, block * (SIZE / 4u) + place));
    }
    workgroupBarrier();
#for i in range(row_blocks)
    load_own_b_block(block, ${i}u);
#endfor
    workgroupBarrier();
}

fn load_own_a_block(block: u32, row_block: u32) {
    let at = weights_at + row_block * SIZE * WEIGHT_STRIDE;
    own_a[row_block * COLUMN_BLOCKS + block] = coopLoadT<Left>(&f16s[at * VEC4], WEIGHT_STRIDE * VEC4);
}

fn load_own_b_block(block: u32, row_block: u32) {
    let at = weights_at + row_block * SIZE * WEIGHT_STRIDE;
    own_b[row_block * COLUMN_BLOCKS + block] = coopLoadT<Left>(&f16s[at * VEC4], WEIGHT_STRIDE * VEC4);
}

// With `partly`, some pairs do not see each other.
fn stage(index: u32, partly: bool) {
    for (var item = index; item < STAGED * DIM_VEC4; item += THREADS) {
        let place = item / DIM_VEC4;
        let column = item % DIM_VEC4;
        var x = load_x(staged_begin + place, column);
        var y = load_y(staged_begin + place, column);
        if (partly && !(is_finite(x) && is_finite(y))) {
            x = vec4<f16>();
            y = vec4<f16>();
            mark_broken(place);
        }
        put_f16(place * VECTOR_STRIDE + column, x);
        put_f16(Y + place * VECTOR_STRIDE + column, y);
    }
}

fn clear_products(i: u32) {
    first[i] = Sum();
    second[i] = Sum();
}

// Products with one matrix of x and of y, transposed as it is loaded: number i along the columns and what is staged.
fn add_products(i: u32) {
    let block = i / STAGED_BLOCKS;
    let staged_block = i % STAGED_BLOCKS;
    let at = staged_block * SIZE * VECTOR_STRIDE + block * SIZE / 4u;
    let x = coopLoad<Right>(&f16s[at * VEC4], VECTOR_STRIDE * VEC4);
    let y = coopLoad<Right>(&f16s[(Y + at) * VEC4], VECTOR_STRIDE * VEC4);
#for i in range(row_blocks)
    add_products_block(block, staged_block, ${i}u, x, y);
#endfor
}

fn add_products_block(block: u32, staged_block: u32, row_block: u32, x: Right, y: Right) {
    let own = row_block * COLUMN_BLOCKS + block;
    let i = row_block * STAGED_BLOCKS + staged_block;
    first[i] = coopMultiplyAdd(own_a[own], x, first[i]);
    second[i] = coopMultiplyAdd(own_b[own], y, second[i]);
}

fn store_products(i: u32) {
    let at = scores_at + i / STAGED_BLOCKS * SIZE * SCORE_STRIDE + i % STAGED_BLOCKS * SIZE / 4u;
    coopStoreT(first[i], &f32s[at * VEC4], SCORE_STRIDE * VEC4);
    coopStoreT(second[i], &f32s[(at + SCORE_SLAB) * VEC4], SCORE_STRIDE * VEC4);
}

// Products of all pairs of what the subgroup owns and what is staged become weights.
fn weigh_pairs() {
    for (var item = lane; item < ROWS * STAGED / 4u; item += SUBGROUP) {
        let row = item / (STAGED / 4u);
        let place = item % (STAGED / 4u);
        let at = scores_at + row * SCORE_STRIDE + place;
        let to = weights_at + row * WEIGHT_STRIDE + place;
        weigh(own_begin + row, 4u * place, to, get_f32(at), get_f32(at + SCORE_SLAB));
    }
}

// Products with one matrix of x and of y: number i along what is staged and the columns.
fn add_sums(i: u32) {
    let staged_block = i / COLUMN_BLOCKS;
    let block = i % COLUMN_BLOCKS;
    let at = staged_block * SIZE * VECTOR_STRIDE + block * SIZE / 4u;
    let x = coopLoadT<Right>(&f16s[at * VEC4], VECTOR_STRIDE * VEC4);
#for i in range(row_blocks)
    add_sums_a_block(block, staged_block, ${i}u, x);
#endfor
    if (PAIR_SLABS > 1u) {
        var y = x;
        if (SECOND_OF_Y > 0u) { y = coopLoadT<Right>(&f16s[(Y + at) * VEC4], VECTOR_STRIDE * VEC4); }
#for i in range(row_blocks)
        add_sums_b_block(block, staged_block, ${i}u, y);
#endfor
    }
}

fn add_sums_a_block(block: u32, staged_block: u32, row_block: u32, x: Right) {
    let at = weights_at + row_block * SIZE * WEIGHT_STRIDE + staged_block * SIZE / 4u;
    let i = row_block * COLUMN_BLOCKS + block;
    of_a[i] = coopMultiplyAdd(coopLoadT<Left>(&f16s[at * VEC4], WEIGHT_STRIDE * VEC4), x, of_a[i]);
}

fn add_sums_b_block(block: u32, staged_block: u32, row_block: u32, y: Right) {
    let at = weights_at + WEIGHT_SLAB + row_block * SIZE * WEIGHT_STRIDE + staged_block * SIZE / 4u;
    let i = row_block * COLUMN_BLOCKS + block;
    of_b[i] = coopMultiplyAdd(coopLoadT<Left>(&f16s[at * VEC4], WEIGHT_STRIDE * VEC4), y, of_b[i]);
}

// Stages vectors, and turns their products with what the subgroup owns into weights. Called by all threads: it holds barriers.
fn weigh_staged(index: u32, partly: bool) {
    stage(index, partly);
    workgroupBarrier();
#for i in range(row_blocks * staged_blocks)
    clear_products(${i}u);
#endfor
#for i in range(column_blocks * staged_blocks)
    add_products(${i}u);
#endfor
#for i in range(row_blocks * staged_blocks)
    store_products(${i}u);
#endfor
    workgroupBarrier();
    weigh_pairs();
    workgroupBarrier();
}

// What all vectors staged add to the sums. Called by all threads: it holds barriers.
fn walk(index: u32, partly: bool) {
    weigh_staged(index, partly);
#for i in range(column_blocks * staged_blocks)
    add_sums(${i}u);
#endfor
    clear_broken(index, THREADS);
    workgroupBarrier();
}

fn store_block(block: u32, row_block: u32) {
    let at = scores_at + row_block * SIZE * SCORE_STRIDE;
    coopStoreT(of_a[row_block * COLUMN_BLOCKS + block], &f32s[at * VEC4], SCORE_STRIDE * VEC4);
    if (PAIR_SLABS > 1u) {
        coopStoreT(of_b[row_block * COLUMN_BLOCKS + block], &f32s[(at + SCORE_SLAB) * VEC4], SCORE_STRIDE * VEC4);
    }
}

// Writes one column of matrices of the sums; neighbouring lanes write neighbouring vec4. Holds barriers.
fn write_sums(block: u32) {
#for i in range(row_blocks)
    store_block(block, ${i}u);
#endfor
    workgroupBarrier();
    for (var item = lane; item < ROWS * SIZE / 4u; item += SUBGROUP) {
        let row = item / (SIZE / 4u);
        let place = item % (SIZE / 4u);
        let column = block * (SIZE / 4u) + place;
        if (column < HEAD_DIM_VEC4) {
            let at = scores_at + row * SCORE_STRIDE + place;
            store(own_begin + row, column, get_f32(at), get_f32(at + SCORE_SLAB));
        }
    }
    workgroupBarrier();
}
