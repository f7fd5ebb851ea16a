// Products of matrices on CPU adapters with subgroups of eight lanes (lavapipe): each lane owns ROWS rows of the result, in CELLS
// cells of columns that all lanes have in common.
//
// For four elements of the sum a lane loads those of its own rows, in as many loads, and an eighth of those of the columns;
// subgroup operations hand these to the other seven lanes. Functions of a number have a form `..._each()` that calls them for
// all numbers, written by src/kernel/source.rs: an array stays in registers only while all its indices are constants.
// src/kernel/matmul.rs says why these numbers.
// Prelude: ROWS (4 or 8), CELLS (even), TRANSPOSE_A and TRANSPOSE_B (0 or 1: how the factors are stored).

const LANES: u32 = 8u;

var<private> sums: array<vec4<f32>, ROWS * CELLS>;
var<private> left: array<vec4<f32>, 8>; // of each row of the lane, the first ROWS of these, four elements
var<private> left_at: array<vec4<u32>, ROWS / 4u>; // of each four rows; of a transposed one, of each of four k
var<private> left_offset: u32; // of the step
// Of each pair of cells, what the lane loads of b: as stored, one of the cells at one of four k; transposed, four k of one of
// the eight columns.
var<private> right_at: array<u32, CELLS / 2u>;
var<private> right_offset: u32;
var<private> lane: u32;

// What is loaded of four rows, or transposed of four k, becomes the left factor of the step.
fn keep_left(four: u32, loaded: mat4x4<f32>) {
    var rows = loaded;
    if (TRANSPOSE_A == 1u) {
        rows = transpose(loaded);
    }
    left[4u * four] = rows[0];
    left[4u * four + 1u] = rows[1];
    left[4u * four + 2u] = rows[2];
    left[4u * four + 3u] = rows[3];
}

// Adds products with two cells of columns, given the lane's part of them. Columns go one by one, so that what lanes hand over
// stays in registers.
fn add_columns(pair: u32, own: vec4<f32>) {
    add_column(2u * pair, 0u, handed_0(own));
    add_column(2u * pair, 1u, handed_1(own));
    add_column(2u * pair, 2u, handed_2(own));
    add_column(2u * pair, 3u, handed_3(own));
    add_column(2u * pair + 1u, 0u, handed_4(own));
    add_column(2u * pair + 1u, 1u, handed_5(own));
    add_column(2u * pair + 1u, 2u, handed_6(own));
    add_column(2u * pair + 1u, 3u, handed_7(own));
}

fn handed_0(own: vec4<f32>) -> vec4<f32> {
    if (TRANSPOSE_B == 1u) {
        return subgroupBroadcast(own, 0u);
    }
    return vec4<f32>(subgroupBroadcast(own.x, 0u), subgroupBroadcast(own.x, 1u), subgroupBroadcast(own.x, 2u), subgroupBroadcast(own.x, 3u));
}

fn handed_1(own: vec4<f32>) -> vec4<f32> {
    if (TRANSPOSE_B == 1u) {
        return subgroupBroadcast(own, 1u);
    }
    return vec4<f32>(subgroupBroadcast(own.y, 0u), subgroupBroadcast(own.y, 1u), subgroupBroadcast(own.y, 2u), subgroupBroadcast(own.y, 3u));
}

fn handed_2(own: vec4<f32>) -> vec4<f32> {
    if (TRANSPOSE_B == 1u) {
        return subgroupBroadcast(own, 2u);
    }
    return vec4<f32>(subgroupBroadcast(own.z, 0u), subgroupBroadcast(own.z, 1u), subgroupBroadcast(own.z, 2u), subgroupBroadcast(own.z, 3u));
}

fn handed_3(own: vec4<f32>) -> vec4<f32> {
    if (TRANSPOSE_B == 1u) {
        return subgroupBroadcast(own, 3u);
    }
    return vec4<f32>(subgroupBroadcast(own.w, 0u), subgroupBroadcast(own.w, 1u), subgroupBroadcast(own.w, 2u), subgroupBroadcast(own.w, 3u));
}

fn handed_4(own: vec4<f32>) -> vec4<f32> {
    if (TRANSPOSE_B == 1u) {
        return subgroupBroadcast(own, 4u);
    }
    return vec4<f32>(subgroupBroadcast(own.x, 4u), subgroupBroadcast(own.x, 5u), subgroupBroadcast(own.x, 6u), subgroupBroadcast(own.x, 7u));
}

fn handed_5(own: vec4<f32>) -> vec4<f32> {
    if (TRANSPOSE_B == 1u) {
        return subgroupBroadcast(own, 5u);
    }
    return vec4<f32>(subgroupBroadcast(own.y, 4u), subgroupBroadcast(own.y, 5u), subgroupBroadcast(own.y, 6u), subgroupBroadcast(own.y, 7u));
}

fn handed_6(own: vec4<f32>) -> vec4<f32> {
    if (TRANSPOSE_B == 1u) {
        return subgroupBroadcast(own, 6u);
    }
    return vec4<f32>(subgroupBroadcast(own.z, 4u), subgroupBroadcast(own.z, 5u), subgroupBroadcast(own.z, 6u), subgroupBroadcast(own.z, 7u));
}

fn handed_7(own: vec4<f32>) -> vec4<f32> {
    if (TRANSPOSE_B == 1u) {
        return subgroupBroadcast(own, 7u);
    }
    return vec4<f32>(subgroupBroadcast(own.w, 4u), subgroupBroadcast(own.w, 5u), subgroupBroadcast(own.w, 6u), subgroupBroadcast(own.w, 7u));
}

fn add_column(cell: u32, column: u32, four: vec4<f32>) {
    add_element(cell, column, 0u, four);
    add_element(cell, column, 1u, four);
    add_element(cell, column, 2u, four);
    add_element(cell, column, 3u, four);
    if (ROWS > 4u) {
        add_element(cell, column, 4u, four);
        add_element(cell, column, 5u, four);
        add_element(cell, column, 6u, four);
        add_element(cell, column, 7u, four);
    }
}

fn add_element(cell: u32, column: u32, row: u32, four: vec4<f32>) {
    sums[row * CELLS + cell][column] = dot_add(left[row], four, sums[row * CELLS + cell][column]);
}

fn dot_add(a: vec4<f32>, b: vec4<f32>, sum: f32) -> f32 {
    return fma(a.w, b.w, fma(a.z, b.z, fma(a.y, b.y, fma(a.x, b.x, sum))));
}
