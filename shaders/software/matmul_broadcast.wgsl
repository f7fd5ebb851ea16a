// c = op(a) op(b) with bias, activation and scaled residual in the same pass, on CPUs of the `broadcast` tier (lavapipe).
//
// A workgroup is one subgroup of eight lanes and computes 8 * ROWS rows and VEC4S vec4 of columns; product_lanes.wgsl says how. A
// step adds DEPTH elements to each sum. Factors are read as vec4: strides and windows must be multiples of 4, and the length of the
// sums a multiple of DEPTH. For other products MatmulVariant::for_lengths chooses another kernel.

#include "product.wgsl"
#include "product_lanes.wgsl"

// Places for starting and storing the sums.
var<private> first_row: u32; // the lane's first row
var<private> first_vec4: u32; // first vec4 of columns, the same for all lanes
var<private> place: u32; // index of that vec4 of the lane's first row in c

fn find_right(pair: u32) {
#if transpose_b
    let column = min(4u * first_vec4 + 8u * pair + lane, params.columns - 1u);
    right_at[pair] = (params.b_skip + column * params.b_stride) / 4u;
#else
    let column_vec4 = min(first_vec4 + 2u * pair + lane / 4u, params.columns / 4u - 1u);
    right_at[pair] = (params.b_skip + lane % 4u * params.b_stride) / 4u + column_vec4;
#endif
}

// Rows after the last one of c repeat it, and so do columns. Their sums are not stored.
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
fn start_sum(i: u32) {
    sums[i] = biased(vec4<f32>(), min(first_vec4 + i % VEC4S, params.columns / 4u - 1u));
}

fn exists(i: u32) -> bool {
    return first_row + i / VEC4S < params.rows && first_vec4 + i % VEC4S < params.columns / 4u;
}

fn add_stored(i: u32) {
    if (exists(i)) {
        sums[i] += widen(c[place + i / VEC4S * params.c_stride + i % VEC4S]);
    }
}

fn store_sum(i: u32) {
    if (exists(i)) {
        c[place + i / VEC4S * params.c_stride + i % VEC4S] = narrow(sums[i]);
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
#for i in range(rows * vec4s)
    start_sum(${i}u);
#endfor
    for (var k = 0u; k < params.inner; k += DEPTH) {
        add_four(k);
#if depth > 4
        add_four(k + 4u);
#endif
    }
    let of_c = first_row * params.c_stride + first_vec4;
    place = params.c_skip + of_c;
    if (has_flag(FLAG_ACCUMULATE)) {
#for i in range(rows * vec4s)
        add_stored(${i}u);
#endfor
    }
#for i in range(rows * vec4s)
    store_sum(${i}u);
#endfor
    if (${activation != "identity"} || has_flag(FLAG_RESIDUAL)) {
        for (var i = 0u; i < ROWS * VEC4S; i++) {
            if (exists(i)) {
                let at = i / VEC4S * params.c_stride + i % VEC4S;
                c[place + at] = narrow(activated(widen(c[place + at]), of_c + at));
            }
        }
    }
}
