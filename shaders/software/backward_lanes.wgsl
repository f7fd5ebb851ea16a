// The backward on CPUs: lanes own vectors, and all of a workgroup's meet the same STAGED staged ones in a step.
//
// Each lane owns VECTORS_PER_LANE vectors of each of two operands (rows: q and dout; keys: k and v) and their gradients:
//
//   s = own_a . staged_a    dp = own_b . staged_b    sum_a += scale * ds * staged_a    sum_b += out_scale * p * staged_b
//
// A step is straight-line code in which every index is a constant. Nothing in it depends on a condition, or compilers blend every
// sum with the lanes for which it holds. Each lane loads the staged vectors itself, for drivers that turn a load at an address
// all lanes share into one scalar load and a broadcast (lavapipe of Mesa 26 and later). docs/performance.md says what else
// was tried.

#include "backward_pairs.wgsl"
#include "vectors.wgsl"

const LANES: u32 = ${lanes}u; // the adapter's vector width in f32
const LANE_GROUPS: u32 = ${lane_groups}u; // that share what is staged
const VECTORS_PER_LANE: u32 = ${vectors_per_lane}u; // 1 to 4
const STAGED: u32 = 4u;
const THREADS: u32 = LANES * LANE_GROUPS;
const SIDE: u32 = VECTORS_PER_LANE * THREADS; // rows, or keys, of a workgroup: a lane's are THREADS apart

alias Vector = array<vec4<f32>, HEAD_DIM_VEC4>;

// Zeros in the place of what is not finite, because a vector that does not see a staged one would take up 0 * NaN.
var<workgroup> staged_a: array<vec4<f32>, STAGED * HEAD_DIM_VEC4>;
var<workgroup> staged_b: array<vec4<f32>, STAGED * HEAD_DIM_VEC4>;
// Of each staged vector, the last step, counted from 1, in which it was not finite.
var<workgroup> not_finite: array<atomic<u32>, STAGED>;

// Of each owned vector: arrays for four, of which the first VECTORS_PER_LANE are used.
var<private> own_a: array<Vector, 4>;
var<private> own_b: array<Vector, 4>;
var<private> sum_a: array<Vector, 4>;
var<private> sum_b: array<Vector, 4>;
var<private> s: array<vec4<f32>, 4>; // with each staged vector; then p
var<private> dp: array<vec4<f32>, 4>; // then ds
var<private> place: u32; // of the vector that is loaded or stored: its first element in its binding

// Column c of the staged vectors.
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

// Sums start from what is there: after the loop, with all sums held, older drivers compile each of these loads for long.
fn load_sums(r: u32, c: u32) {
    sum_a[r][c] = old_a(place + c);
    sum_b[r][c] = old_b(place + c);
}

fn store_sums(r: u32, c: u32) {
    store(place + c, sum_a[r][c], sum_b[r][c]);
}

// Vectors that do not exist stay zeros.
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

// The numbers of a lane's vectors.
fn find_own(begin: u32, lane: u32) -> vec4<u32> {
    return vec4<u32>(begin + lane) + THREADS * vec4<u32>(0u, 1u, 2u, 3u);
}

// Before the first barrier.
fn begin_staging(lane: u32) {
    if (lane < STAGED) {
        atomicStore(&not_finite[lane], 0u);
    }
}

fn stage_pair(i: u32, a: vec4<f32>, b: vec4<f32>, number: u32) {
    staged_a[i] = select(vec4<f32>(), a, is_finite(a));
    staged_b[i] = select(vec4<f32>(), b, is_finite(b));
    if (!all(is_finite(a) & is_finite(b))) {
        atomicStore(&not_finite[i / HEAD_DIM_VEC4], number);
    }
}

// A step's keys from `first` on, zeros where there are none.
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

// Staged vectors that are not finite, as NaN; 0 for those that are.
fn spoil(number: u32) -> vec4<f32> {
    let last = vec4<u32>(atomicLoad(&not_finite[0]), atomicLoad(&not_finite[1]), atomicLoad(&not_finite[2]), atomicLoad(&not_finite[3]));
    return bitcast<vec4<f32>>(select(vec4<u32>(), vec4<u32>(number | 0x7fc00000u), last == vec4<u32>(number)));
}

fn clear_products() {
    s = array<vec4<f32>, 4>();
    dp = array<vec4<f32>, 4>();
}
