// Matrix products on CPUs of the `broadcast` tier (lavapipe), in subgroups of eight lanes. Each lane computes ROWS rows of the
// result; all lanes have the same VEC4S vec4 of columns. `transpose_a` and `transpose_b` say which factors are stored transposed.
//
// For four elements of the sums, a lane loads those of its own rows, one vec4 for each row, and an eighth of those of the columns,
// which subgroup operations hand to the other seven lanes. Loops are unrolled, because an array stays in registers only while all
// its indices are constants. docs/performance.md says how the numbers were chosen.

#include "vectors.wgsl"

const ROWS: u32 = ${rows}u; // 4 or 8
const VEC4S: u32 = ${vec4s}u; // even
const DEPTH: u32 = ${depth}u; // elements of each sum in a step: 4 or 8

const LANES: u32 = 8u;

var<private> sums: array<vec4<f32>, ROWS * VEC4S>;
var<private> left: array<vec4<f32>, 8>; // four elements of each row of the lane; the first ROWS are used
// For each group of four rows, the places of what the lane loads of a: of each row or, if a is transposed, of each of four
// elements of the sums.
var<private> left_at: array<vec4<u32>, ROWS / 4u>;
var<private> left_offset: u32; // added to left_at in this step
// For each pair of vec4 of columns, the place of what the lane loads of b: one of the two vec4 for one of four elements of the
// sums or, if b is transposed, four elements of the sums for one of the eight columns.
var<private> right_at: array<u32, VEC4S / 2u>;
var<private> right_offset: u32; // added to right_at in this step
var<private> lane: u32;

// Makes what was loaded for four rows the left factor of the step.
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

// Adds the products with two vec4 of columns, of which each lane has loaded a part (`own`). Columns go one by one, so that what the
// lanes hand over stays in registers.
fn add_columns(pair: u32, own: vec4<f32>) {
#for i in range(8)
    add_column(2u * pair + ${i // 4}u, ${i % 4}u, handed_${i}(own));
#endfor
}

// handed_i: four elements of the sums for column i, which one lane has (b transposed) or four lanes have one of each.
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
