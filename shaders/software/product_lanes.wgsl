// Products of matrices on CPU adapters with subgroups of eight lanes (lavapipe): each lane owns ROWS rows of the result, in VEC4S
// vec4s of columns that all lanes have in common. `transpose_a` and `transpose_b` say how the factors are stored.
//
// For four elements of the sum a lane loads those of its own rows, in as many loads, and an eighth of those of the columns;
// subgroup operations hand these to the other seven lanes. An array stays in registers only while all its indices are constants, so
// loops over them are written out. docs/performance.md says why these numbers.

#include "vectors.wgsl"

const ROWS: u32 = ${rows}u; // 4 or 8
const VEC4S: u32 = ${vec4s}u; // even
const DEPTH: u32 = ${depth}u; // elements of the sum in a step: 4 or 8

const LANES: u32 = 8u;

var<private> sums: array<vec4<f32>, ROWS * VEC4S>;
var<private> left: array<vec4<f32>, 8>; // of each row of the lane, the first ROWS of these, four elements
var<private> left_at: array<vec4<u32>, ROWS / 4u>; // of each four rows; of a transposed one, of each of four k
var<private> left_offset: u32; // of the step
// Of each pair of vec4s, what the lane loads of b: as stored, one of the vec4s at one of four k; transposed, four k of one of
// the eight columns.
var<private> right_at: array<u32, VEC4S / 2u>;
var<private> right_offset: u32;
var<private> lane: u32;

// What is loaded of four rows, or transposed of four k, becomes the left factor of the step.
fn keep_left(four: u32, loaded: mat4x4<f32>) {
    var rows = loaded;
#if transpose_a
    rows = transpose(loaded);
#endif
    left[4u * four] = rows[0];
    left[4u * four + 1u] = rows[1];
    left[4u * four + 2u] = rows[2];
    left[4u * four + 3u] = rows[3];
}

// Adds products with two vec4s of columns, given the lane's part of them: of each column, what its lane has (transposed), or what
// four lanes have. Columns go one by one, so that what lanes hand over stays in registers.
fn add_columns(pair: u32, own: vec4<f32>) {
#for i in range(8)
    add_column(2u * pair + ${i // 4}u, ${i % 4}u, handed_${i}(own));
#endfor
}

#for i in range(8)
#set component = "xyzw"[i % 4]
#set lane = i // 4 * 4
fn handed_${i}(own: vec4<f32>) -> vec4<f32> {
#if transpose_b
    return subgroupBroadcast(own, ${i}u);
#else
    let own_one = own.${component};
    return vec4<f32>(subgroupBroadcast(own_one, ${lane}u), subgroupBroadcast(own_one, ${lane + 1}u), subgroupBroadcast(own_one, ${lane + 2}u), subgroupBroadcast(own_one, ${lane + 3}u));
#endif
}

#endfor
fn add_column(column_vec4: u32, column: u32, four: vec4<f32>) {
#for row in range(rows)
    add_element(column_vec4, column, ${row}u, four);
#endfor
}

fn add_element(column_vec4: u32, column: u32, row: u32, four: vec4<f32>) {
    sums[row * VEC4S + column_vec4][column] = dot_add(left[row], four, sums[row * VEC4S + column_vec4][column]);
}
