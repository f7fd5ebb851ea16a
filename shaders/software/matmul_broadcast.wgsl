// c = op(a) op(b) with bias, activation and scaled residual in the same pass, on CPUs of the `broadcast` tier (lavapipe).
//
// A workgroup is one subgroup of eight lanes and computes 8 * ROWS rows and VEC4S vec4 of columns; product_lanes.wgsl says how. A
// step adds DEPTH elements to each sum. Factors are read as vec4: strides and windows must be multiples of 4, and the length of the
// sums a multiple of DEPTH. For other products MatmulVariant::for_lengths chooses another kernel.

#include "product.wgsl"
#include "product_lanes.wgsl"

var<private> first_row: u32; // the lane's first row
var<private> first_vec4: u32; // first vec4 of columns, the same for all lanes

// A vec4 of columns after the last one repeats it. Rows after the last one of c repeat it, too, and are not stored.
fn find_right(pair: u32) {
    let column_vec4 = min(first_vec4 + 2u * pair + lane / 4u, params.columns / 4u - 1u);
#if transpose_b
    right_at[pair] = (params.b_skip + (4u * column_vec4 + lane % 4u) * params.b_stride) / 4u;
#else
    right_at[pair] = (params.b_skip + lane % 4u * params.b_stride) / 4u + column_vec4;
#endif
}

fn find_left(four: u32) {
    let rows = min(vec4<u32>(first_row + 4u * four) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(params.rows - 1u));
#if transpose_a
    left_at[four] = (params.a_skip + vec4<u32>(0u, 1u, 2u, 3u) * params.a_stride + rows.x) / 4u;
#else
    left_at[four] = (params.a_skip + rows * params.a_stride) / 4u;
#endif
}

fn load_left(four: u32) {
    let at = left_at[four] + left_offset;
    keep_left(four, mat4x4<f32>(four_a(at.x), four_a(at.y), four_a(at.z), four_a(at.w)));
}

fn add_pair(pair: u32) {
    add_columns(pair, four_b(right_at[pair] + right_offset));
}

fn add_four(k: u32) {
    left_offset = k / 4u * select(1u, params.a_stride, TRANSPOSE_A);
    right_offset = k / 4u * select(params.b_stride, 1u, TRANSPOSE_B);
#for i in range(rows // 4)
    load_left(${i}u);
#endfor
#for i in range(vec4s // 2)
    add_pair(${i}u);
#endfor
}

// Sums start from the bias, so that it is added before the result is rounded to its element format.
fn start_column(j: u32) {
    let added = bias[params.bias_skip + min(first_vec4 + j, params.columns / 4u - 1u)];
#for r in range(rows)
    sums[${r}u * VEC4S + j] = added;
#endfor
}

// Index in c of vec4 j of the lane's row r. For columns after the last one it is that of the last one, whose sum they repeat: to
// store it again costs less than a branch around every store, which compilers take long for.
fn place_in_c(r: u32, j: u32) -> u32 {
    return params.c_skip + (first_row + r) * params.c_stride + min(first_vec4 + j, params.columns / 4u - 1u);
}

fn add_stored(r: u32, j: u32) {
    sums[r * VEC4S + j] += widen(c[place_in_c(r, j)]);
}

fn store_sum(r: u32, j: u32) {
    c[place_in_c(r, j)] = narrow(sums[r * VEC4S + j]);
}

fn store_row(r: u32) {
    if (first_row + r < params.rows) {
        if (has_flag(FLAG_ACCUMULATE)) {
#for j in range(vec4s)
            add_stored(r, ${j}u);
#endfor
        }
#for j in range(vec4s)
        store_sum(r, ${j}u);
#endfor
    }
}

@compute @workgroup_size(LANES)
fn matmul_broadcast(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(subgroup_invocation_id) subgroup_lane: u32) {
    lane = subgroup_lane;
    let number = workgroup_number(workgroup);
    first_row = number / params.tiles_x * (ROWS * LANES) + ROWS * lane;
    first_vec4 = number % params.tiles_x * VEC4S;
#for i in range(rows // 4)
    find_left(${i}u);
#endfor
#for i in range(vec4s // 2)
    find_right(${i}u);
#endfor
    if (has_flag(FLAG_BIAS)) {
#for j in range(vec4s)
        start_column(${j}u);
#endfor
    }
    for (var k = 0u; k < params.inner; k += DEPTH) {
        add_four(k);
#if depth > 4
        add_four(k + 4u);
#endif
    }
#for r in range(rows)
    store_row(${r}u);
#endfor
    if (${activation != "identity"} || has_flag(FLAG_RESIDUAL)) {
        for (var i = 0u; i < ROWS * VEC4S; i++) {
            let row = first_row + i / VEC4S;
            let column_vec4 = first_vec4 + i % VEC4S;
            if (row < params.rows && column_vec4 < params.columns / 4u) {
                let at = row * params.c_stride + column_vec4;
                c[params.c_skip + at] = narrow(activated(widen(c[params.c_skip + at]), at));
            }
        }
    }
}
