// Forward attention for adapters that run on a CPU and turn a load at an address all lanes share into one scalar load and
// a broadcast (lavapipe of Mesa 26 and later).
//
// Each lane owns two query rows (their q and their output), all lanes walk over the same keys, four at a time: a key's
// vec4 then feeds two rows, and an output vec4 is loaded and stored once per four keys. Keys and values are staged in
// workgroup memory, because such an adapter checks the bounds of a storage access with a branch per scalar.
// Functions of a column c have a form `..._each()` that calls them for all columns, written by src/kernel/source.rs: an array
// stays in registers only while all its indices are constants, and compilers do not unroll loops as long as these.
// Prelude: HEAD_DIM_VEC4, LANES (the adapter's vector width in f32), LANE_GROUPS (groups of lanes that share the keys).

const THREADS: u32 = LANES * LANE_GROUPS;
const ROWS_PER_WORKGROUP: u32 = 2u * THREADS;
const TILE_KEYS: u32 = min(32u, 512u / HEAD_DIM_VEC4 / 4u * 4u); // k and v together take at most 16 KiB

var<workgroup> keys: array<array<vec4<f32>, HEAD_DIM_VEC4>, TILE_KEYS>;
var<workgroup> values: array<array<vec4<f32>, HEAD_DIM_VEC4>, TILE_KEYS>;

var<private> query_a: array<vec4<f32>, HEAD_DIM_VEC4>;
var<private> query_b: array<vec4<f32>, HEAD_DIM_VEC4>;
var<private> output_a: array<vec4<f32>, HEAD_DIM_VEC4>;
var<private> output_b: array<vec4<f32>, HEAD_DIM_VEC4>;
// What a step works with, beside its column.
var<private> at: u32; // first element of a row in q or the output
var<private> key: u32; // first of the four keys, or the only one, in the staged tile
// Scores, then weights, of the four keys.
var<private> score_a: vec4<f32>;
var<private> score_b: vec4<f32>;
// Factors on what the rows hold already.
var<private> shrink_a: f32;
var<private> shrink_b: f32;
var<private> end: RowEnd;

fn dot_add(a: vec4<f32>, b: vec4<f32>, sum: f32) -> f32 {
    return fma(a.w, b.w, fma(a.z, b.z, fma(a.y, b.y, fma(a.x, b.x, sum))));
}

fn load_a(c: u32) {
    query_a[c] = q[at + c];
}

fn load_b(c: u32) {
    query_b[c] = q[at + c];
}

fn add_scores(c: u32) {
    let k0 = keys[key][c];
    let k1 = keys[key + 1u][c];
    let k2 = keys[key + 2u][c];
    let k3 = keys[key + 3u][c];
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

fn add_values(c: u32) {
    let v0 = values[key][c];
    let v1 = values[key + 1u][c];
    let v2 = values[key + 2u][c];
    let v3 = values[key + 3u][c];
    output_a[c] = weigh_keys(score_a, v0, v1, v2, v3, shrink_a * output_a[c]);
    output_b[c] = weigh_keys(score_b, v0, v1, v2, v3, shrink_b * output_b[c]);
}

// One key: its score in x.
fn last_score(c: u32) {
    let k0 = keys[key][c];
    score_a.x = dot_add(query_a[c], k0, score_a.x);
    score_b.x = dot_add(query_b[c], k0, score_b.x);
}

// One key: weight in x, scale of what is there in y, 1 in z if the row sees the key.
fn last_value(c: u32) {
    let v0 = values[key][c];
    output_a[c] = fma(vec4<f32>(score_a.x), select(vec4<f32>(), v0, score_a.z > 0.0), score_a.y * output_a[c]);
    output_b[c] = fma(vec4<f32>(score_b.x), select(vec4<f32>(), v0, score_b.z > 0.0), score_b.y * output_b[c]);
}

fn store_a(c: u32) {
    store_output(at + c, end, output_a[c]);
}

fn store_b(c: u32) {
    store_output(at + c, end, output_b[c]);
}

fn horizontal_max(a: vec4<f32>) -> f32 {
    return max(max(a.x, a.y), max(a.z, a.w));
}

@compute @workgroup_size(THREADS)
fn forward_rows(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let tile = locate_tile(workgroup, ROWS_PER_WORKGROUP);
    let row_a = tile.row_begin + lane;
    let row_b = row_a + THREADS;
    // Rows that are phantom or beyond the tile keep q = 0.
    let query_end = min(tile.row_end, tile.real_rows);
    if (row_a < query_end) {
        at = query_index(tile, row_a);
        load_a_each();
    }
    if (row_b < query_end) {
        at = query_index(tile, row_b);
        load_b_each();
    }

    var max_a = SCORE_FLOOR;
    var max_b = SCORE_FLOOR;
    var sum_a = vec4<f32>();
    var sum_b = vec4<f32>();
    let causal = has_flag(FLAG_CAUSAL);
    for (var first = tile.key_begin; first < tile.key_end; first += TILE_KEYS) {
        workgroupBarrier();
        for (var i = lane; i < TILE_KEYS * HEAD_DIM_VEC4; i += THREADS) {
            let row = i / HEAD_DIM_VEC4;
            if (first + row < tile.key_end) {
                let source = key_index(tile, first + row) + i % HEAD_DIM_VEC4;
                keys[row][i % HEAD_DIM_VEC4] = k[source];
                values[row][i % HEAD_DIM_VEC4] = v[source];
            }
        }
        workgroupBarrier();
        key = 0u;
        let full = min(TILE_KEYS, max(tile.key_full, first) - first);
        for (; key + 4u <= full; key += 4u) {
            score_a = vec4<f32>();
            score_b = vec4<f32>();
            add_scores_each();
            score_a *= params.scale_log2e;
            score_b *= params.scale_log2e;
            let new_a = max(max_a, horizontal_max(score_a));
            let new_b = max(max_b, horizontal_max(score_b));
            shrink_a = exp2(max_a - new_a);
            shrink_b = exp2(max_b - new_b);
            max_a = new_a;
            max_b = new_b;
            score_a = exp2(score_a - max_a);
            score_b = exp2(score_b - max_b);
            sum_a = fma(sum_a, vec4<f32>(shrink_a), score_a);
            sum_b = fma(sum_b, vec4<f32>(shrink_b), score_b);
            add_values_each();
        }
        // The keys left over, and under the causal mask those only some rows see: one at a time.
        for (; key < min(TILE_KEYS, tile.key_end - first); key++) {
            score_a.x = 0.0;
            score_b.x = 0.0;
            last_score_each();
            score_a.x *= params.scale_log2e;
            score_b.x *= params.scale_log2e;
            let seen_a = !causal || first + key <= row_a;
            let seen_b = !causal || first + key <= row_b;
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
            last_value_each();
        }
    }

    if (row_a < tile.row_end) {
        end = finish_row(tile, row_a, max_a, dot(sum_a, vec4<f32>(1.0)));
        at = output_index(output_place(tile, row_a));
        store_a_each();
    }
    if (row_b < tile.row_end) {
        end = finish_row(tile, row_b, max_b, dot(sum_b, vec4<f32>(1.0)));
        at = output_index(output_place(tile, row_b));
        store_b_each();
    }
}
