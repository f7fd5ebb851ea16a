// Forward attention with everything in registers: for adapters that run on a CPU and turn a load at an address all lanes
// share into one scalar load and a broadcast (lavapipe of Mesa 26 and later).
//
// Each lane owns two query rows (their q and their output), all lanes walk over the same keys, four at a time: a key's
// vec4 then feeds two rows, and an output vec4 is loaded and stored once per four keys. No barriers, no workgroup memory.
// Prelude: HEAD_DIM_VEC4, LANES (the adapter's vector width in f32).

const ROWS_PER_WORKGROUP: u32 = 2u * LANES;
// The maximum used for a row may lag behind the true one by this much in log2 units: rescaling the output is then rare,
// and 2^8 per key is far from overflow.
const MAX_LAG: f32 = 8.0;

var<private> query_a: array<vec4<f32>, HEAD_DIM_VEC4>;
var<private> query_b: array<vec4<f32>, HEAD_DIM_VEC4>;
var<private> output_a: array<vec4<f32>, HEAD_DIM_VEC4>;
var<private> output_b: array<vec4<f32>, HEAD_DIM_VEC4>;
// What a step works with: four elements of a key or value, or one of q or the output, and four scores or weights a row.
var<private> at: vec4<u32>;
var<private> score_a: vec4<f32>;
var<private> score_b: vec4<f32>;
var<private> end: RowEnd;

fn dot_add(a: vec4<f32>, b: vec4<f32>, sum: f32) -> f32 {
    return fma(a.w, b.w, fma(a.z, b.z, fma(a.y, b.y, fma(a.x, b.x, sum))));
}

fn load_a(c: u32) {
    query_a[c] = params.scale_log2e * q[at.x + c];
}

fn load_b(c: u32) {
    query_b[c] = params.scale_log2e * q[at.x + c];
}

fn scores(c: u32) {
    let k0 = k[at.x + c];
    let k1 = k[at.y + c];
    let k2 = k[at.z + c];
    let k3 = k[at.w + c];
    score_a.x = dot_add(query_a[c], k0, score_a.x);
    score_a.y = dot_add(query_a[c], k1, score_a.y);
    score_a.z = dot_add(query_a[c], k2, score_a.z);
    score_a.w = dot_add(query_a[c], k3, score_a.w);
    score_b.x = dot_add(query_b[c], k0, score_b.x);
    score_b.y = dot_add(query_b[c], k1, score_b.y);
    score_b.z = dot_add(query_b[c], k2, score_b.z);
    score_b.w = dot_add(query_b[c], k3, score_b.w);
}

fn weigh_keys(weight: vec4<f32>, v0: vec4<f32>, v1: vec4<f32>, v2: vec4<f32>, v3: vec4<f32>, sum: vec4<f32>) -> vec4<f32> {
    let two = fma(vec4<f32>(weight.y), v1, fma(vec4<f32>(weight.x), v0, sum));
    return fma(vec4<f32>(weight.w), v3, fma(vec4<f32>(weight.z), v2, two));
}

fn values(c: u32) {
    let v0 = v[at.x + c];
    let v1 = v[at.y + c];
    let v2 = v[at.z + c];
    let v3 = v[at.w + c];
    output_a[c] = weigh_keys(score_a, v0, v1, v2, v3, output_a[c]);
    output_b[c] = weigh_keys(score_b, v0, v1, v2, v3, output_b[c]);
}

// Scales by x.
fn rescale(c: u32) {
    output_a[c] *= score_a.x;
    output_b[c] *= score_b.x;
}

// One key: its score in x.
fn last_score(c: u32) {
    let k0 = k[at.x + c];
    score_a.x = dot_add(query_a[c], k0, score_a.x);
    score_b.x = dot_add(query_b[c], k0, score_b.x);
}

// One key: weight in x, scale of what is there in y, 1 in z if the row sees the key.
fn last_value(c: u32) {
    let v0 = v[at.x + c];
    output_a[c] = fma(vec4<f32>(score_a.x), select(vec4<f32>(), v0, score_a.z > 0.0), score_a.y * output_a[c]);
    output_b[c] = fma(vec4<f32>(score_b.x), select(vec4<f32>(), v0, score_b.z > 0.0), score_b.y * output_b[c]);
}

fn store_a(c: u32) {
    store_output(at.x + c, end, output_a[c]);
}

fn store_b(c: u32) {
    store_output(at.x + c, end, output_b[c]);
}

const LOAD_A: u32 = 0u;
const LOAD_B: u32 = 1u;
const SCORES: u32 = 2u;
const VALUES: u32 = 3u;
const RESCALE: u32 = 4u;
const LAST_SCORE: u32 = 5u;
const LAST_VALUE: u32 = 6u;
const STORE_A: u32 = 7u;
const STORE_B: u32 = 8u;

// Every step over the head dimension is unrolled here, in the source, by calls with constants: an array stays in
// registers only while all its indices are constants, and compilers do not unroll loops as long as these.
fn step(kind: u32, c: u32) {
    if (c < HEAD_DIM_VEC4) {
        switch (kind) {
            case LOAD_A: { load_a(c); }
            case LOAD_B: { load_b(c); }
            case SCORES: { scores(c); }
            case VALUES: { values(c); }
            case RESCALE: { rescale(c); }
            case LAST_SCORE: { last_score(c); }
            case LAST_VALUE: { last_value(c); }
            case STORE_A: { store_a(c); }
            default: { store_b(c); }
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

fn horizontal_max(a: vec4<f32>) -> f32 {
    return max(max(a.x, a.y), max(a.z, a.w));
}

@compute @workgroup_size(LANES)
fn forward_rows(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let tile = locate_tile(workgroup, ROWS_PER_WORKGROUP);
    let row_a = tile.row_begin + lane;
    let row_b = row_a + LANES;
    // Rows that are phantom or beyond the tile keep q = 0.
    let query_end = min(tile.row_end, tile.real_rows);
    if (row_a < query_end) {
        at.x = query_index(tile, row_a);
        each_column(LOAD_A);
    }
    if (row_b < query_end) {
        at.x = query_index(tile, row_b);
        each_column(LOAD_B);
    }

    var max_a = SCORE_FLOOR;
    var max_b = SCORE_FLOOR;
    var sum_a = vec4<f32>();
    var sum_b = vec4<f32>();
    let stride = key_stride();
    var key = tile.key_begin;
    var place = key_index(tile, key);
    for (; key + 4u <= tile.key_full; key += 4u) {
        at = place + vec4<u32>(0u, stride, 2u * stride, 3u * stride);
        score_a = vec4<f32>();
        score_b = vec4<f32>();
        each_column(SCORES);
        let all_a = score_a;
        let all_b = score_b;
        let top_a = horizontal_max(all_a);
        let top_b = horizontal_max(all_b);
        // A loop of at most one turn: a software adapter leaves it when no lane needs it, but runs a branch masked.
        var grown = top_a > max_a + MAX_LAG || top_b > max_b + MAX_LAG;
        while (grown) {
            // Each row for itself: one that has not outgrown its maximum keeps it, and with it every bit of its result,
            // whatever the other row of the lane saw.
            let new_a = select(max_a, top_a, top_a > max_a + MAX_LAG);
            let new_b = select(max_b, top_b, top_b > max_b + MAX_LAG);
            score_a.x = exp2(max_a - new_a);
            score_b.x = exp2(max_b - new_b);
            max_a = new_a;
            max_b = new_b;
            sum_a *= score_a.x;
            sum_b *= score_b.x;
            each_column(RESCALE);
            grown = false;
        }
        score_a = exp2(all_a - max_a);
        score_b = exp2(all_b - max_b);
        sum_a += score_a;
        sum_b += score_b;
        each_column(VALUES);
        place += 4u * stride;
    }

    // The keys left over, and under the causal mask those only some rows see: one at a time.
    let causal = has_flag(FLAG_CAUSAL);
    for (; key < tile.key_end; key++) {
        at.x = place;
        score_a.x = 0.0;
        score_b.x = 0.0;
        each_column(LAST_SCORE);
        let seen_a = !causal || key <= row_a;
        let seen_b = !causal || key <= row_b;
        let new_a = max(max_a, select(SCORE_FLOOR, score_a.x, seen_a));
        let new_b = max(max_b, select(SCORE_FLOOR, score_b.x, seen_b));
        // Selects, not products with 0: an unseen key may hold a NaN.
        let p_a = select(0.0, exp2(score_a.x - new_a), seen_a);
        let p_b = select(0.0, exp2(score_b.x - new_b), seen_b);
        score_a = vec4<f32>(p_a, exp2(max_a - new_a), f32(seen_a), 0.0);
        score_b = vec4<f32>(p_b, exp2(max_b - new_b), f32(seen_b), 0.0);
        max_a = new_a;
        max_b = new_b;
        sum_a = sum_a * score_a.y + vec4<f32>(p_a, 0.0, 0.0, 0.0);
        sum_b = sum_b * score_b.y + vec4<f32>(p_b, 0.0, 0.0, 0.0);
        each_column(LAST_VALUE);
        place += stride;
    }

    if (row_a < tile.row_end) {
        end = finish_row(tile, row_a, max_a, dot(sum_a, vec4<f32>(1.0)));
        at.x = output_index(output_place(tile, row_a));
        each_column(STORE_A);
    }
    if (row_b < tile.row_end) {
        end = finish_row(tile, row_b, max_b, dot(sum_b, vec4<f32>(1.0)));
        at.x = output_index(output_place(tile, row_b));
        each_column(STORE_B);
    }
}
