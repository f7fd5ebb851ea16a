// What the backward kernels of the `rows` tier (CPUs) have in common. In each step all lanes of a workgroup read the same STAGED
// vectors of the other side.
//
// Each lane owns VECTORS_PER_LANE vectors of two operands and their gradients: q and dout of rows, or k and v of keys. With the
// staged vectors of the other side it computes
//
//   s = own_a . staged_a    dp = own_b . staged_b    sum_a += scale * ds * staged_a    sum_b += out_scale * p * staged_b
//
// A step is straight-line code with constant indices only. It has no conditions: with one, compilers would blend every sum with its
// old value in the lanes where the condition is false. Each lane loads the staged vectors itself. That suits drivers that turn a
// load at an address shared by all lanes into one scalar load and a broadcast (lavapipe of Mesa 26 and later). docs/performance.md
// says what else was tried.

#include "backward_pairs.wgsl"
#include "vectors.wgsl"

const LANES: u32 = ${lanes}u; // f32 in a vector of the CPU
const LANE_GROUPS: u32 = ${lane_groups}u; // groups of lanes that share the staged vectors
const VECTORS_PER_LANE: u32 = ${vectors_per_lane}u; // 1 to 4
const STAGED: u32 = 4u;
const THREADS: u32 = LANES * LANE_GROUPS;
const SIDE: u32 = VECTORS_PER_LANE * THREADS; // rows (or keys) of a workgroup; those of a lane are THREADS apart

alias Vector = array<vec4<f32>, HEAD_DIM_VEC4>;

// NaN and infinity are staged as 0, because an owned vector that does not see the staged one would add 0 * NaN.
var<workgroup> staged_a: array<vec4<f32>, STAGED * HEAD_DIM_VEC4>;
var<workgroup> staged_b: array<vec4<f32>, STAGED * HEAD_DIM_VEC4>;
// For each of the STAGED places: the last step, counted from 1, in which the vector there was not finite.
var<workgroup> not_finite: array<atomic<u32>, STAGED>;

// For each owned vector. The arrays have room for four, of which the first VECTORS_PER_LANE are used.
var<private> own_a: array<Vector, 4>;
var<private> own_b: array<Vector, 4>;
var<private> sum_a: array<Vector, 4>;
var<private> sum_b: array<Vector, 4>;
var<private> s: array<vec4<f32>, 4>; // products with the four staged vectors; later p
var<private> dp: array<vec4<f32>, 4>; // products of the second operand; later ds
var<private> place: u32; // index of the vector that is being loaded or stored, in its binding

// Column c (a vec4) of the four staged vectors.
fn four_a(c: u32) -> mat4x4<f32> {
    return mat4x4<f32>(staged_a[c], staged_a[HEAD_DIM_VEC4 + c], staged_a[2u * HEAD_DIM_VEC4 + c], staged_a[3u * HEAD_DIM_VEC4 + c]);
}

fn four_b(c: u32) -> mat4x4<f32> {
    return mat4x4<f32>(staged_b[c], staged_b[HEAD_DIM_VEC4 + c], staged_b[2u * HEAD_DIM_VEC4 + c], staged_b[3u * HEAD_DIM_VEC4 + c]);
}

fn add_products_a(c: u32) {
    let four = four_a(c);
#for i in range(vectors_per_lane)
    s[${i}] = dots(own_a[${i}][c], four, s[${i}]);
#endfor
}

fn add_products_b(c: u32) {
    let four = four_b(c);
#for i in range(vectors_per_lane)
    dp[${i}] = dots(own_b[${i}][c], four, dp[${i}]);
#endfor
}

fn add_to_a(c: u32) {
    let four = four_a(c);
#for i in range(vectors_per_lane)
    sum_a[${i}][c] = weigh(dp[${i}], four, sum_a[${i}][c]);
#endfor
}

fn add_to_b(c: u32) {
    let four = four_b(c);
#for i in range(vectors_per_lane)
    sum_b[${i}][c] = weigh(s[${i}], four, sum_b[${i}][c]);
#endfor
}

fn load_own_a(r: u32, c: u32) {
    own_a[r][c] = load_a(place + c);
}

fn load_own_b(r: u32, c: u32) {
    own_b[r][c] = load_b(place + c);
}

// Where results are merged, sums start from the old content. If it were added after the loop instead, while all sums are held,
// older drivers would take long to compile each of these loads.
fn load_sums(r: u32, c: u32) {
    sum_a[r][c] = old_a(place + c);
    sum_b[r][c] = old_b(place + c);
}

fn store_sums(r: u32, c: u32) {
    store(place + c, sum_a[r][c], sum_b[r][c]);
}

// Loads an owned row. Vectors that do not exist stay 0.
fn begin_row(tile: Tile, r: u32, row: u32) {
    if (r < VECTORS_PER_LANE && row < min(tile.row_end, tile.real_rows)) {
        place = query_index(tile, row);
#for c in range(head_dim // 4)
        load_own_a(r, ${c}u);
#endfor
    }
    if (r < VECTORS_PER_LANE && row < tile.row_end) {
        place = output_index(output_place(tile, row));
#for c in range(head_dim // 4)
        load_own_b(r, ${c}u);
#endfor
    }
}

// Loads an owned key. Vectors that do not exist stay 0.
fn begin_key(tile: Tile, r: u32, key: u32) {
    if (r < VECTORS_PER_LANE && key < tile.key_end) {
        place = key_index(tile, key);
#for c in range(head_dim // 4)
        load_own_a(r, ${c}u);
#endfor
#for c in range(head_dim // 4)
        load_own_b(r, ${c}u);
#endfor
        if (has_flag(FLAG_MERGE)) {
#for c in range(head_dim // 4)
            load_sums(r, ${c}u);
#endfor
        }
    }
}

// The rows (or keys) that a lane owns.
fn find_own(begin: u32, lane: u32) -> vec4<u32> {
    return vec4<u32>(begin + lane) + THREADS * vec4<u32>(0u, 1u, 2u, 3u);
}

// Resets the flags. To be called before the first barrier.
fn begin_staging(lane: u32) {
    if (lane < STAGED) {
        atomicStore(&not_finite[lane], 0u);
    }
}

// Stages vec4 i of both operands in step `number`.
fn stage_pair(i: u32, a: vec4<f32>, b: vec4<f32>, number: u32) {
    staged_a[i] = select(vec4<f32>(), a, is_finite(a));
    staged_b[i] = select(vec4<f32>(), b, is_finite(b));
    if (!all(is_finite(a) & is_finite(b))) {
        atomicStore(&not_finite[i / HEAD_DIM_VEC4], number);
    }
}

// Stages STAGED keys from `first` on, zeros where there are none.
fn stage_keys(tile: Tile, first: u32, lane: u32, number: u32) {
    for (var i = lane; i < STAGED * HEAD_DIM_VEC4; i += THREADS) {
        let key = first + i / HEAD_DIM_VEC4;
        if (key < tile.key_end) {
            let source = key_index(tile, key) + i % HEAD_DIM_VEC4;
            stage_pair(i, widen(k[source]), widen(v[source]), number);
        } else {
            stage_pair(i, vec4<f32>(), vec4<f32>(), number);
        }
    }
}

// NaN for each staged vector that is not finite in step `number`, 0 for the others.
fn spoil(number: u32) -> vec4<f32> {
    let last = vec4<u32>(atomicLoad(&not_finite[0]), atomicLoad(&not_finite[1]), atomicLoad(&not_finite[2]), atomicLoad(&not_finite[3]));
    return bitcast<vec4<f32>>(select(vec4<u32>(), vec4<u32>(number | 0x7fc00000u), last == vec4<u32>(number)));
}

fn clear_products() {
    s = array<vec4<f32>, 4>();
    dp = array<vec4<f32>, 4>();
}
