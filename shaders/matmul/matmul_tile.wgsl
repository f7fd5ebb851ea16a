// c = op(a) op(b) with bias, activation and scaled residual in the same pass, on GPUs. A workgroup computes 64 x 64 elements of c.
//
// It has 8 x 8 threads. Each computes 8 x 8 elements: four blocks of four rows by a vec4 of columns, 32 rows or columns apart. For
// each inner element a thread reads 4 vec4 of workgroup memory and does 16 fma of a vec4. Neighbouring threads load from
// neighbouring addresses.
//
// Workgroup memory: 8192 bytes.

#include "product.wgsl"
#include "store.wgsl"

const SIDE: u32 = 64u;
const DEPTH: u32 = 16u; // elements along the inner dimension that are staged at a time
const SIDE_VEC4: u32 = SIDE / 4u;

// [inner][row of c], [inner][column of c]
var<workgroup> left: array<vec4<f32>, DEPTH * SIDE_VEC4>;
var<workgroup> right: array<vec4<f32>, DEPTH * SIDE_VEC4>;

fn element_a(row: u32, k: u32, end: u32) -> f32 {
    if (row >= params.rows || k >= end) {
        return 0.0;
    }
    return load_a(row, k);
}

fn element_b(k: u32, column: u32, end: u32) -> f32 {
    if (column >= params.columns || k >= end) {
        return 0.0;
    }
    return load_b(k, column);
}

// Stages both factors. A thread takes four neighbouring rows of c, or columns, for one inner element; neighbouring threads take
// neighbouring addresses.
fn stage(index: u32, first_row: u32, first_column: u32, first_k: u32, end: u32) {
    for (var i = 0u; i < DEPTH * SIDE_VEC4; i += 64u) {
        let item = i + index;
        let k_a = select(item % DEPTH, item / SIDE_VEC4, TRANSPOSE_A);
        let of_a = select(item / DEPTH, item % SIDE_VEC4, TRANSPOSE_A);
        let row = first_row + of_a * 4u;
        left[k_a * SIDE_VEC4 + of_a] = vec4<f32>(element_a(row, first_k + k_a, end), element_a(row + 1u, first_k + k_a, end),
            element_a(row + 2u, first_k + k_a, end), element_a(row + 3u, first_k + k_a, end));
        let k_b = select(item / SIDE_VEC4, item % DEPTH, TRANSPOSE_B);
        let of_b = select(item % SIDE_VEC4, item / DEPTH, TRANSPOSE_B);
        let column = first_column + of_b * 4u;
        right[k_b * SIDE_VEC4 + of_b] = vec4<f32>(element_b(first_k + k_b, column, end), element_b(first_k + k_b, column + 1u, end),
            element_b(first_k + k_b, column + 2u, end), element_b(first_k + k_b, column + 3u, end));
    }
}

// sum[i] += column[i] * row: four rows of c by four columns.
fn outer(column: vec4<f32>, row: vec4<f32>, sum: mat4x4<f32>) -> mat4x4<f32> {
    return mat4x4<f32>(fma(vec4<f32>(column.x), row, sum[0]), fma(vec4<f32>(column.y), row, sum[1]),
        fma(vec4<f32>(column.z), row, sum[2]), fma(vec4<f32>(column.w), row, sum[3]));
}

fn store_block(row: u32, column: u32, offset: u32, block: mat4x4<f32>) {
    store_row(row, column, offset, block[0]);
    store_row(row + 1u, column, offset, block[1]);
    store_row(row + 2u, column, offset, block[2]);
    store_row(row + 3u, column, offset, block[3]);
}

@compute @workgroup_size(64)
fn matmul_tile(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let number = workgroup_number(workgroup);
    let first_column = number % params.tiles_x * SIDE;
    let first_row = number / params.tiles_x % params.tiles_y * SIDE;
    let split = number / (params.tiles_x * params.tiles_y);
    let begin = min(params.inner, split * params.split);
    let end = min(params.inner, begin + params.split);
    let x = index % 8u;
    let y = index / 8u;
    var top_left = mat4x4<f32>();
    var top_right = mat4x4<f32>();
    var bottom_left = mat4x4<f32>();
    var bottom_right = mat4x4<f32>();
    for (var first_k = begin; first_k < end; first_k += DEPTH) {
        stage(index, first_row, first_column, first_k, end);
        workgroupBarrier();
        for (var k = 0u; k < DEPTH; k++) {
            let top = left[k * SIDE_VEC4 + y];
            let bottom = left[k * SIDE_VEC4 + y + 8u];
            let first = right[k * SIDE_VEC4 + x];
            let second = right[k * SIDE_VEC4 + x + 8u];
            top_left = outer(top, first, top_left);
            top_right = outer(top, second, top_right);
            bottom_left = outer(bottom, first, bottom_left);
            bottom_right = outer(bottom, second, bottom_right);
        }
        workgroupBarrier();
    }
    // Workgroups beyond the last one write nothing.
    if (split * params.split < max(params.inner, 1u)) {
        let offset = split * params.split_stride;
        let row = first_row + 4u * y;
        let column = first_column + 4u * x;
        store_block(row, column, offset, top_left);
        store_block(row, column + 32u, offset, top_right);
        store_block(row + 32u, column, offset, bottom_left);
        store_block(row + 32u, column + 32u, offset, bottom_right);
    }
}
