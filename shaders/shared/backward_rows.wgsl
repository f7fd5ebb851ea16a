// The backward on CPUs: lanes own vectors, and all of a workgroup's meet the same STAGED staged ones in a step.
//
// Each lane owns VECTORS_PER_LANE vectors of each of two operands (rows: q and dout; keys: k and v) and their gradients:
//
//   s = own_a . staged_a    dp = own_b . staged_b    sum_a += scale * ds * staged_a    sum_b += out_scale * p * staged_b
//
// A step is straight-line code in which every index is a constant: functions of a column c have a form `..._each()` that
// calls them for all columns, written by src/kernel/source.rs. Nothing in it depends on a condition, or compilers blend every
// sum with the lanes for which it holds. Each lane loads the staged vectors itself, for drivers that turn a load at an address
// all lanes share into one scalar load and a broadcast (lavapipe of Mesa 26 and later). src/kernel/backward.rs says what else
// was tried.
// Prelude: HEAD_DIM_VEC4, LANES (the adapter's vector width in f32), LANE_GROUPS (groups of lanes that share the staged),
// VECTORS_PER_LANE (1 to 4).

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

fn dots(own: vec4<f32>, four: mat4x4<f32>, sum: vec4<f32>) -> vec4<f32> {
    return vec4<f32>(dot_add(own, four[0], sum.x), dot_add(own, four[1], sum.y), dot_add(own, four[2], sum.z), dot_add(own, four[3], sum.w));
}

fn dot_add(a: vec4<f32>, b: vec4<f32>, sum: f32) -> f32 {
    return fma(a.w, b.w, fma(a.z, b.z, fma(a.y, b.y, fma(a.x, b.x, sum))));
}

fn weigh(w: vec4<f32>, four: mat4x4<f32>, sum: vec4<f32>) -> vec4<f32> {
    let two = fma(vec4<f32>(w.y), four[1], fma(vec4<f32>(w.x), four[0], sum));
    return fma(vec4<f32>(w.w), four[3], fma(vec4<f32>(w.z), four[2], two));
}

// Column c of the staged vectors.
fn four_a(c: u32) -> mat4x4<f32> {
    return mat4x4<f32>(staged_a[c], staged_a[HEAD_DIM_VEC4 + c], staged_a[2u * HEAD_DIM_VEC4 + c], staged_a[3u * HEAD_DIM_VEC4 + c]);
}

fn four_b(c: u32) -> mat4x4<f32> {
    return mat4x4<f32>(staged_b[c], staged_b[HEAD_DIM_VEC4 + c], staged_b[2u * HEAD_DIM_VEC4 + c], staged_b[3u * HEAD_DIM_VEC4 + c]);
}

fn add_products_a(c: u32) {
    let four = four_a(c);
    s[0] = dots(own_a[0][c], four, s[0]);
    if (VECTORS_PER_LANE > 1u) { s[1] = dots(own_a[1][c], four, s[1]); }
    if (VECTORS_PER_LANE > 2u) { s[2] = dots(own_a[2][c], four, s[2]); }
    if (VECTORS_PER_LANE > 3u) { s[3] = dots(own_a[3][c], four, s[3]); }
}

fn add_products_b(c: u32) {
    let four = four_b(c);
    dp[0] = dots(own_b[0][c], four, dp[0]);
    if (VECTORS_PER_LANE > 1u) { dp[1] = dots(own_b[1][c], four, dp[1]); }
    if (VECTORS_PER_LANE > 2u) { dp[2] = dots(own_b[2][c], four, dp[2]); }
    if (VECTORS_PER_LANE > 3u) { dp[3] = dots(own_b[3][c], four, dp[3]); }
}

fn add_to_a(c: u32) {
    let four = four_a(c);
    sum_a[0][c] = weigh(dp[0], four, sum_a[0][c]);
    if (VECTORS_PER_LANE > 1u) { sum_a[1][c] = weigh(dp[1], four, sum_a[1][c]); }
    if (VECTORS_PER_LANE > 2u) { sum_a[2][c] = weigh(dp[2], four, sum_a[2][c]); }
    if (VECTORS_PER_LANE > 3u) { sum_a[3][c] = weigh(dp[3], four, sum_a[3][c]); }
}

fn add_to_b(c: u32) {
    let four = four_b(c);
    sum_b[0][c] = weigh(s[0], four, sum_b[0][c]);
    if (VECTORS_PER_LANE > 1u) { sum_b[1][c] = weigh(s[1], four, sum_b[1][c]); }
    if (VECTORS_PER_LANE > 2u) { sum_b[2][c] = weigh(s[2], four, sum_b[2][c]); }
    if (VECTORS_PER_LANE > 3u) { sum_b[3][c] = weigh(s[3], four, sum_b[3][c]); }
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
        load_own_a_each(r);
    }
    if (r < VECTORS_PER_LANE && row < tile.row_end) {
        place = output_index(output_place(tile, row));
        load_own_b_each(r);
    }
}

fn begin_key(tile: Tile, r: u32, key: u32) {
    if (r < VECTORS_PER_LANE && key < tile.key_end) {
        place = key_index(tile, key);
        load_own_a_each(r);
        load_own_b_each(r);
        if (has_flag(FLAG_MERGE)) {
            load_sums_each(r);
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
