// What the backward kernels with cooperative matrices (tensor cores) have in common. Tensors are stored as f16.
//
// A subgroup owns ROWS vectors of two operands a and b and keeps them in matrices: q and dout of rows, or k and v of keys. All
// subgroups of the workgroup walk over the same vectors x and y of the other side (k and v, or q and dout), STAGED at a time, which
// are staged in workgroup memory. In each step
//
//   first = a x^T    second = b y^T    stored to two slabs of the subgroup, because a matrix gives no access to its elements
//   the lanes turn both products of each pair into weights, stored as f16 to one or two slabs
//   of_a += weights x    of_b += second weights y (gradients of keys and values), or second weights x (gradient of queries)
//
// A barrier stands between each store of a matrix and the reads of it, even within one subgroup, because such stores carry no
// memory semantics of their own. Strides are padded, so that rows begin in different banks.
//
// The including kernel defines PAIR_SLABS, the slabs of weights (1 or 2), and SECOND_OF_Y (1: the second weights multiply y; 0:
// they multiply x, too). It defines load_a, load_b, load_x and load_y, which load a vec4 of an operand, weigh, which turns products
// into weights, and store, which writes the results. It calls begin_subgroup, then load_own for each column of matrices, then walk
// for each step (weigh_staged where no gradient is summed), then write_sums for each column of matrices.

#include "backward_pairs.wgsl"
#include "matrices.wgsl"
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
const STAGED_BLOCKS: u32 = ${staged_blocks}u;
const THREADS: u32 = SUBGROUP * SUBGROUPS;

// Strides and slabs in vec4.
const VECTOR_STRIDE: u32 = DIM_VEC4 + 2u;
const WEIGHT_STRIDE: u32 = STAGED / 4u + 2u;
const SCORE_STRIDE: u32 = STAGED / 4u + 1u;
const Y: u32 = STAGED * VECTOR_STRIDE; // place of y in f16s: after x
const WEIGHTS: u32 = 2u * STAGED * VECTOR_STRIDE; // place of the weights: after y, PAIR_SLABS slabs for each subgroup
const WEIGHT_SLAB: u32 = ROWS * WEIGHT_STRIDE;
const SCORE_SLAB: u32 = ROWS * SCORE_STRIDE;
const F16_VEC4S: u32 = WEIGHTS + SUBGROUPS * PAIR_SLABS * WEIGHT_SLAB;
const F32_VEC4S: u32 = SUBGROUPS * 2u * SCORE_SLAB;

var<private> tile: Tile;
var<private> own_begin: u32; // the subgroup's first vector, counted from the first of the workgroup
var<private> staged_begin: u32; // the first staged vector: row or key of the segment
var<private> lane: u32;
var<private> weights_at: u32; // place of the subgroup's slabs of weights in f16s
var<private> scores_at: u32; // place of the subgroup's slabs of products in f32s

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

// Loads one column of matrices of a and b, by way of the subgroup's slab of weights. All threads call it: it holds barriers.
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

// Stages STAGED vectors of x and y. `partly` says that some pairs do not see each other.
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

// Adds the products with one matrix of x and one of y, which are transposed as they are loaded. i numbers the matrices: columns of
// the head, then staged vectors.
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

// Turns the products of all pairs of owned and staged vectors into weights, four pairs at a time.
fn weigh_pairs() {
    for (var item = lane; item < ROWS * STAGED / 4u; item += SUBGROUP) {
        let row = item / (STAGED / 4u);
        let place = item % (STAGED / 4u);
        let at = scores_at + row * SCORE_STRIDE + place;
        let to = weights_at + row * WEIGHT_STRIDE + place;
        weigh(own_begin + row, 4u * place, to, get_f32(at), get_f32(at + SCORE_SLAB));
    }
}

// Adds one matrix of x, and of y, times the weights to the sums. i numbers the matrices: staged vectors, then columns of the head.
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

// Stages vectors, and turns their products with the owned vectors into weights. All threads call it: it holds barriers.
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

// One step: stages vectors and adds their contributions to the sums. All threads call it: it holds barriers.
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

// Writes one column of matrices of the sums to memory; neighbouring lanes write neighbouring vec4. All threads call it: it holds barriers.
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
