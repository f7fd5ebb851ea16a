// c = op(a) op(b) with bias, activation and scaled residual in the same pass, with cooperative matrices (tensor cores): f16
// factors, f32 sums.
//
// A workgroup computes TILE_ROWS x TILE_COLUMNS elements of c, each subgroup a block of ROW_BLOCKS x COLUMN_BLOCKS matrices of
// them. STAGED elements along the inner dimension of both factors are staged in workgroup memory, in the order in which they are
// stored; the load of a matrix transposes a transposed factor. To access the elements of a matrix of sums, it is stored to the
// subgroup's slab of workgroup memory. A barrier stands between such a store and the reads of it, because stores of matrices carry
// no memory semantics of their own. Strides are padded, so that rows begin in different banks.

#include "matrices.wgsl"
#include "product.wgsl"
#include "store.wgsl"

const SUBGROUP: u32 = ${subgroup}u; // lanes of a subgroup
const SUBGROUPS_X: u32 = ${subgroups_x}u; // subgroups along the columns of c
const SUBGROUPS_Y: u32 = ${subgroups_y}u; // subgroups along the rows of c
const ROW_BLOCKS: u32 = ${row_blocks}u;
const COLUMN_BLOCKS: u32 = ${column_blocks}u;
const STAGED: u32 = ${staged}u;

const TILE_ROWS: u32 = SUBGROUPS_Y * ROW_BLOCKS * SIZE;
const TILE_COLUMNS: u32 = SUBGROUPS_X * COLUMN_BLOCKS * SIZE;
const THREADS: u32 = SUBGROUP * SUBGROUPS_X * SUBGROUPS_Y;

// Staged rows of both factors, as stored: their number, and their width and stride in vec4.
const LEFT_ROWS: u32 = select(TILE_ROWS, STAGED, TRANSPOSE_A);
const LEFT_WIDTH: u32 = select(STAGED, TILE_ROWS, TRANSPOSE_A) / 4u;
const LEFT_STRIDE: u32 = LEFT_WIDTH + 2u;
const RIGHT_ROWS: u32 = select(STAGED, TILE_COLUMNS, TRANSPOSE_B);
const RIGHT_WIDTH: u32 = select(TILE_COLUMNS, STAGED, TRANSPOSE_B) / 4u;
const RIGHT_STRIDE: u32 = RIGHT_WIDTH + 2u;
const SUM_STRIDE: u32 = SIZE / 4u + 1u;
const RIGHT: u32 = LEFT_ROWS * LEFT_STRIDE; // place of the right factor in f16s: after the left one
const F16_VEC4S: u32 = RIGHT + RIGHT_ROWS * RIGHT_STRIDE;
const F32_VEC4S: u32 = SUBGROUPS_X * SUBGROUPS_Y * SIZE * SUM_STRIDE;

var<private> lane: u32;
var<private> sums_at: u32; // place of the subgroup's slab in f32s
var<private> block_row: u32; // first row and column of the subgroup's block, in the tile
var<private> block_column: u32;
var<private> step: u32; // staged inner elements before those that are being multiplied
var<private> first_row: u32; // first row and column of the tile, in c
var<private> first_column: u32;
var<private> offset: u32; // vectors of c before the result of this split
var<private> lefts: array<Left, ROW_BLOCKS>;
var<private> sums: array<Sum, ROW_BLOCKS * COLUMN_BLOCKS>;

// Four neighbouring elements, as stored. All four exist or none, because widths, windows and splits are multiples of 4.
fn four_of_a(row: u32, k: u32, end: u32) -> vec4<f16> {
    if (row >= params.rows || k >= end) {
        return vec4<f16>();
    }
    return a[index_a(row, k) / 4u];
}

fn four_of_b(k: u32, column: u32, end: u32) -> vec4<f16> {
    if (column >= params.columns || k >= end) {
        return vec4<f16>();
    }
    return b[index_b(k, column) / 4u];
}

fn stage(index: u32, first_k: u32, end: u32) {
    for (var item = index; item < LEFT_ROWS * LEFT_WIDTH; item += THREADS) {
        let line = item / LEFT_WIDTH;
        let place = item % LEFT_WIDTH;
        let row = first_row + select(line, 4u * place, TRANSPOSE_A);
        let k = first_k + select(4u * place, line, TRANSPOSE_A);
        put_f16(line * LEFT_STRIDE + place, four_of_a(row, k, end));
    }
    for (var item = index; item < RIGHT_ROWS * RIGHT_WIDTH; item += THREADS) {
        let line = item / RIGHT_WIDTH;
        let place = item % RIGHT_WIDTH;
        let k = first_k + select(line, 4u * place, TRANSPOSE_B);
        let column = first_column + select(4u * place, line, TRANSPOSE_B);
        put_f16(RIGHT + line * RIGHT_STRIDE + place, four_of_b(k, column, end));
    }
}

fn load_left(row_block: u32) {
    let row = block_row + row_block * SIZE;
#if transpose_a
    lefts[row_block] = coopLoad<Left>(&f16s[(step * LEFT_STRIDE + row / 4u) * VEC4], LEFT_STRIDE * VEC4);
#else
    lefts[row_block] = coopLoadT<Left>(&f16s[(row * LEFT_STRIDE + step / 4u) * VEC4], LEFT_STRIDE * VEC4);
#endif
}

fn add_products(block: u32) {
    let column = block_column + block * SIZE;
#if transpose_b
    let at = RIGHT + column * RIGHT_STRIDE + step / 4u;
    add_product_rows(block, coopLoad<Right>(&f16s[at * VEC4], RIGHT_STRIDE * VEC4));
#else
    let at = RIGHT + step * RIGHT_STRIDE + column / 4u;
    add_product_rows(block, coopLoadT<Right>(&f16s[at * VEC4], RIGHT_STRIDE * VEC4));
#endif
}

fn add_product_rows(block: u32, right: Right) {
#for i in range(row_blocks)
    add_product(block, ${i}u, right);
#endfor
}

fn add_product(block: u32, row_block: u32, right: Right) {
    let i = row_block * COLUMN_BLOCKS + block;
    sums[i] = coopMultiplyAdd(lefts[row_block], right, sums[i]);
}

// Writes the elements of one matrix to c. All threads call it: it holds barriers.
fn write_block(i: u32) {
    coopStoreT(sums[i], &f32s[sums_at * VEC4], SUM_STRIDE * VEC4);
    workgroupBarrier();
    for (var item = lane; item < SIZE * SIZE / 4u; item += SUBGROUP) {
        let line = item / (SIZE / 4u);
        let place = item % (SIZE / 4u);
        let row = first_row + block_row + i / COLUMN_BLOCKS * SIZE + line;
        let column = first_column + block_column + i % COLUMN_BLOCKS * SIZE + 4u * place;
        store_row(row, column, offset, get_f32(sums_at + line * SUM_STRIDE + place));
    }
    workgroupBarrier();
}

@compute @workgroup_size(THREADS)
fn matmul_coop(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let number = workgroup_number(workgroup);
    first_column = number % params.tiles_x * TILE_COLUMNS;
    first_row = number / params.tiles_x % params.tiles_y * TILE_ROWS;
    let split = number / (params.tiles_x * params.tiles_y);
    let begin = min(params.inner, split * params.split);
    let end = min(params.inner, begin + params.split);
    if (split * params.split >= max(params.inner, 1u)) {
        // Workgroups beyond the last one write no rows.
        first_row = params.rows;
    }
    offset = split * params.split_stride;
    let subgroup = index / SUBGROUP;
    lane = index % SUBGROUP;
    sums_at = subgroup * SIZE * SUM_STRIDE;
    block_row = subgroup / SUBGROUPS_X * (ROW_BLOCKS * SIZE);
    block_column = subgroup % SUBGROUPS_X * (COLUMN_BLOCKS * SIZE);
    for (var k = begin; k < end; k += STAGED) {
        stage(index, k, end);
        workgroupBarrier();
        for (step = 0u; step < STAGED; step += SIZE) {
#for i in range(row_blocks)
            load_left(${i}u);
#endfor
#for i in range(column_blocks)
            add_products(${i}u);
#endfor
        }
        workgroupBarrier();
    }
#for i in range(row_blocks * column_blocks)
    write_block(${i}u);
#endfor
}
