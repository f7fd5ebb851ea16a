// The backward on CPU adapters that turn a load at an address all lanes share into one scalar load and a broadcast.
//
// Each lane owns two vectors of each of two operands (rows: q and dout; keys: k and v) and their gradients, and all lanes
// walk over the same staged vectors of the other two, four at a time:
//
//   s = own_a . staged_a    dp = own_b . staged_b    sum_a += ds * staged_a    sum_b += p * staged_b
//
// Prelude: HEAD_DIM_VEC4, LANES (the adapter's vector width in f32), LANE_GROUPS (groups of lanes that share the staged).

const THREADS: u32 = LANES * LANE_GROUPS;
const OWNED: u32 = 2u;
const SIDE: u32 = OWNED * THREADS; // rows, or keys, of a workgroup
const STAGED: u32 = min(32u, 480u / HEAD_DIM_VEC4 / 4u * 4u); // both operands together take at most 15 KiB

alias Vector = array<vec4<f32>, HEAD_DIM_VEC4>;

var<workgroup> staged_a: array<Vector, STAGED>;
var<workgroup> staged_b: array<Vector, STAGED>;

var<private> own_a: array<Vector, OWNED>;
var<private> own_b: array<Vector, OWNED>;
var<private> sum_a: array<Vector, OWNED>;
var<private> sum_b: array<Vector, OWNED>;
// What a step works with, beside its column.
var<private> at: u32; // first element of a vector in a binding
var<private> item: u32; // first of the four staged vectors
var<private> s: array<vec4<f32>, OWNED>; // for each of the four
var<private> dp: array<vec4<f32>, OWNED>;
var<private> p: array<vec4<f32>, OWNED>;
var<private> ds: array<vec4<f32>, OWNED>;

fn dots(own: vec4<f32>, a: vec4<f32>, b: vec4<f32>, c: vec4<f32>, d: vec4<f32>, sum: vec4<f32>) -> vec4<f32> {
    return vec4<f32>(dot_add(own, a, sum.x), dot_add(own, b, sum.y), dot_add(own, c, sum.z), dot_add(own, d, sum.w));
}

fn dot_add(a: vec4<f32>, b: vec4<f32>, sum: f32) -> f32 {
    return fma(a.w, b.w, fma(a.z, b.z, fma(a.y, b.y, fma(a.x, b.x, sum))));
}

fn weigh(w: vec4<f32>, a: vec4<f32>, b: vec4<f32>, c: vec4<f32>, d: vec4<f32>, sum: vec4<f32>) -> vec4<f32> {
    let two = fma(vec4<f32>(w.y), b, fma(vec4<f32>(w.x), a, sum));
    return fma(vec4<f32>(w.w), d, fma(vec4<f32>(w.z), c, two));
}

// The same where a weight of 0 marks a pair that does not see each other, whose vector may hold a NaN.
fn weigh_seen(w: vec4<f32>, a: vec4<f32>, b: vec4<f32>, c: vec4<f32>, d: vec4<f32>, sum: vec4<f32>) -> vec4<f32> {
    var total = select(fma(vec4<f32>(w.x), a, sum), sum, w.x == 0.0);
    total = select(fma(vec4<f32>(w.y), b, total), total, w.y == 0.0);
    total = select(fma(vec4<f32>(w.z), c, total), total, w.z == 0.0);
    return select(fma(vec4<f32>(w.w), d, total), total, w.w == 0.0);
}

fn add_products(c: u32) {
    let a0 = staged_a[item][c];
    let a1 = staged_a[item + 1u][c];
    let a2 = staged_a[item + 2u][c];
    let a3 = staged_a[item + 3u][c];
    s[0] = dots(own_a[0][c], a0, a1, a2, a3, s[0]);
    s[1] = dots(own_a[1][c], a0, a1, a2, a3, s[1]);
    let b0 = staged_b[item][c];
    let b1 = staged_b[item + 1u][c];
    let b2 = staged_b[item + 2u][c];
    let b3 = staged_b[item + 3u][c];
    dp[0] = dots(own_b[0][c], b0, b1, b2, b3, dp[0]);
    dp[1] = dots(own_b[1][c], b0, b1, b2, b3, dp[1]);
}

fn add_to_a(c: u32) {
    let a0 = staged_a[item][c];
    let a1 = staged_a[item + 1u][c];
    let a2 = staged_a[item + 2u][c];
    let a3 = staged_a[item + 3u][c];
    sum_a[0][c] = weigh(ds[0], a0, a1, a2, a3, sum_a[0][c]);
    sum_a[1][c] = weigh(ds[1], a0, a1, a2, a3, sum_a[1][c]);
}

fn add_seen_to_a(c: u32) {
    let a0 = staged_a[item][c];
    let a1 = staged_a[item + 1u][c];
    let a2 = staged_a[item + 2u][c];
    let a3 = staged_a[item + 3u][c];
    sum_a[0][c] = weigh_seen(ds[0], a0, a1, a2, a3, sum_a[0][c]);
    sum_a[1][c] = weigh_seen(ds[1], a0, a1, a2, a3, sum_a[1][c]);
}

fn add_to_b(c: u32) {
    let b0 = staged_b[item][c];
    let b1 = staged_b[item + 1u][c];
    let b2 = staged_b[item + 2u][c];
    let b3 = staged_b[item + 3u][c];
    sum_b[0][c] = weigh(p[0], b0, b1, b2, b3, sum_b[0][c]);
    sum_b[1][c] = weigh(p[1], b0, b1, b2, b3, sum_b[1][c]);
}

fn add_seen_to_b(c: u32) {
    let b0 = staged_b[item][c];
    let b1 = staged_b[item + 1u][c];
    let b2 = staged_b[item + 2u][c];
    let b3 = staged_b[item + 3u][c];
    sum_b[0][c] = weigh_seen(p[0], b0, b1, b2, b3, sum_b[0][c]);
    sum_b[1][c] = weigh_seen(p[1], b0, b1, b2, b3, sum_b[1][c]);
}

const LOAD_A: u32 = 0u; // and LOAD_A + 1 for the second vector
const LOAD_B: u32 = 2u;
const PRODUCTS: u32 = 4u;
const SUM_A: u32 = 5u;
const SUM_A_SEEN: u32 = 6u;
const SUM_B: u32 = 7u;
const SUM_B_SEEN: u32 = 8u;
const STORE: u32 = 9u; // and STORE + 1 for the second vector

// Every step over the head dimension is unrolled here, in the source, by calls with constants: an array stays in
// registers only while all its indices are constants, and compilers do not unroll loops as long as these.
fn step(kind: u32, c: u32) {
    if (c < HEAD_DIM_VEC4) {
        switch (kind) {
            case LOAD_A: { own_a[0][c] = load_a(at + c); }
            case LOAD_A + 1u: { own_a[1][c] = load_a(at + c); }
            case LOAD_B: { own_b[0][c] = load_b(at + c); }
            case LOAD_B + 1u: { own_b[1][c] = load_b(at + c); }
            case PRODUCTS: { add_products(c); }
            case SUM_A: { add_to_a(c); }
            case SUM_A_SEEN: { add_seen_to_a(c); }
            case SUM_B: { add_to_b(c); }
            case SUM_B_SEEN: { add_seen_to_b(c); }
            case STORE: { store(at + c, sum_a[0][c], sum_b[0][c]); }
            default: { store(at + c, sum_a[1][c], sum_b[1][c]); }
        }
    }
}

fn step_4(kind: u32, c: u32) {
    step(kind, c);
    step(kind, c + 1u);
    step(kind, c + 2u);
    step(kind, c + 3u);
}

fn step_16(kind: u32, c: u32) {
    if (c < HEAD_DIM_VEC4) {
        step_4(kind, c);
        step_4(kind, c + 4u);
        step_4(kind, c + 8u);
        step_4(kind, c + 12u);
    }
}

fn each_column(kind: u32) {
    step_16(kind, 0u);
    step_16(kind, 16u);
    step_16(kind, 32u);
    step_16(kind, 48u);
}

// s and dp of the lane's vectors with the four staged from `first_item` on.
fn products(first_item: u32) {
    item = first_item;
    s[0] = vec4<f32>();
    s[1] = vec4<f32>();
    dp[0] = vec4<f32>();
    dp[1] = vec4<f32>();
    each_column(PRODUCTS);
}
