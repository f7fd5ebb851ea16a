// c = op(a) op(b) with bias, activation and scaled residual in the same pass, on GPUs. A workgroup computes 64 x 64 elements of c.
//
// It has 8 x 8 threads. Each computes 8 x 8 elements: four blocks of four rows by a vec4 of columns, 32 rows or columns apart. For
// each inner element a thread reads 4 vec4 of workgroup memory and does 16 fma of a vec4. Neighbouring threads load from
// neighbouring addresses. The sums are stored through workgroup memory, 32 rows at a time.
//
// Workgroup memory: 8192 bytes.

#include "product.wgsl"
#include "store.wgsl"

const SIDE: u32 = 64u;
const DEPTH: u32 = 16u; // elements along the inner dimension that are staged at a time
const SIDE_VEC4: u32 = SIDE / 4u;
const SIDE_VECTORS: u32 = SIDE / VECTOR_WIDTH; // vectors of a row of c

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

// Puts a thread's sums in half of the tile, rows 4 * y to 4 * y + 3, where `store_half` finds them.
fn stage_sums(x: u32, y: u32, first: mat4x4<f32>, second: mat4x4<f32>) {
#for i in range(4)
    left[(4u * y + ${i}u) * 8u + x] = first[${i}];
    right[(4u * y + ${i}u) * 8u + x] = second[${i}];
#endfor
}

// The staged sums of vector `column` of a row of the half tile.
fn staged_sums(row: u32, column: u32) -> Vector {
    let at = row * 8u + column * VECTOR_WIDTH / 4u % 8u;
    let sums = select(left[at], right[at], column * VECTOR_WIDTH >= 32u);
#if width == "scalar"
    return sums[column % 4u];
#else
    return sums;
#endif
}

// Stores the staged 32 x 64 sums. Neighbouring threads store neighbouring vectors, and the code that stores one stands once: a
// copy of its branches for each sum took more than nine tenths of the time that a software driver needs to compile the kernel.
fn store_half(index: u32, first_row: u32, first_column: u32, offset: u32) {
    for (var i = index; i < 32u * SIDE_VECTORS; i += 64u) {
        let row = i / SIDE_VECTORS;
        let column = i % SIDE_VECTORS;
        store_vector(first_row + row, first_column + column * VECTOR_WIDTH, offset, staged_sums(row, column));
    }
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
        stage_sums(x, y, top_left, top_right);
        workgroupBarrier();
        store_half(index, first_row, first_column, offset);
        workgroupBarrier();
        stage_sums(x, y, bottom_left, bottom_right);
        workgroupBarrier();
        store_half(index, first_row + 32u, first_column, offset);
    }
}
