// Forward attention on CPUs, common to the tiers `rows` and `broadcast`. In each step all lanes of a workgroup read the same KEYS
// staged keys.
//
// Each lane owns ROWS_PER_LANE query rows, and holds their queries and outputs in private arrays. A step is straight-line code with
// constant indices only: in a loop over the staged keys, compilers would compute each address anew, with its bounds check. The
// tiers differ in how a staged vector reaches all lanes: forward_rows.wgsl and forward_broadcast.wgsl define add_scores and
// add_values for a column. docs/performance.md says what else was tried.

#include "forward_output.wgsl"
#include "vectors.wgsl"

const LANES: u32 = ${lanes}u; // f32 in a vector of the CPU
const LANE_GROUPS: u32 = ${lane_groups}u; // groups of lanes that share the staged keys
const ROWS_PER_LANE: u32 = ${rows_per_lane}u; // 1 to 4
const KEYS: u32 = ${keys}u; // 4 or 8

const THREADS: u32 = LANES * LANE_GROUPS;
const ROWS_PER_GROUP: u32 = ROWS_PER_LANE * LANES;
const ROWS_PER_WORKGROUP: u32 = ROWS_PER_GROUP * LANE_GROUPS;
const STAGED: u32 = KEYS * HEAD_DIM_VEC4;
// Outputs are rescaled only when a row's maximum has grown by more than this, in log2 units. Weights stay below 2^8, and the branch
// that rescales every output is hardly ever taken.
const GROWTH: f32 = 8.0;

var<workgroup> keys: array<vec4<f32>, STAGED>;
var<workgroup> values: array<vec4<f32>, STAGED>; // NaN and infinity are staged as 0
var<workgroup> not_finite: atomic<u32>; // 1 when some value of the segment was NaN or infinity

alias Vector = array<vec4<f32>, HEAD_DIM_VEC4>;

// For each row of the lane. The arrays have room for four, of which the first ROWS_PER_LANE are used.
var<private> query: array<Vector, 4>;
var<private> output: array<Vector, 4>;
var<private> scores: array<array<vec4<f32>, 2>, 4>; // scores of the staged keys; later their weights
var<private> sums: array<vec4<f32>, 4>; // sums of weights
var<private> top: vec4<f32>; // the number that weights are relative to: at most GROWTH below the row's maximum
var<private> shrink: vec4<f32>; // factor that rescales sums and outputs
// For the row that is being loaded or stored: its index in its binding, its factors, and whether it is merged.
var<private> place: u32;
var<private> end: RowEnd;
var<private> merges: bool;

fn load_query(r: u32, c: u32) {
    query[r][c] = params.scale_log2e * widen(q[place + c]);
}

// Adds the products of column c to the scores of four staged keys.
fn add_products(block: u32, c: u32, four: mat4x4<f32>) {
#for i in range(rows_per_lane)
    scores[${i}][block] = dots(query[${i}][c], four, scores[${i}][block]);
#endfor
}

// Adds column c of four staged values, times their weights, to the outputs.
fn add_weighed(block: u32, c: u32, four: mat4x4<f32>) {
#for i in range(rows_per_lane)
    output[${i}][c] = weigh(scores[${i}][block], four, output[${i}][c]);
#endfor
}

fn shrink_output(c: u32) {
#for i in range(rows_per_lane)
    output[${i}][c] *= shrink[${i}];
#endfor
}

// The old content is always loaded, and dropped where nothing is merged: a branch for each column would take long to compile.
fn store(r: u32, c: u32) {
    let old = select(vec4<f32>(), widen(out[place + c]), merges);
    out[place + c] = narrow(fma(vec4<f32>(end.kept), old, end.added * output[r][c]));
}

// Loads the query of a row. Phantom rows and rows beyond the tile keep the query 0.
fn begin_row(tile: Tile, r: u32, row: u32) {
    sums[r] = vec4<f32>();
    if (r < ROWS_PER_LANE && row < min(tile.row_end, tile.real_rows)) {
        place = query_index(tile, row);
#for c in range(head_dim // 4)
        load_query(r, ${c}u);
#endfor
    }
}

// Stages KEYS keys from `first` on, zeros where there are none.
fn stage_keys(tile: Tile, first: u32, lane: u32) {
    for (var i = lane; i < STAGED; i += THREADS) {
        let key = first + i / HEAD_DIM_VEC4;
        var vector = vec4<f32>();
        if (key < tile.key_end) {
            vector = widen(k[key_index(tile, key) + i % HEAD_DIM_VEC4]);
        }
        keys[i] = vector;
    }
}

// Stages KEYS values from `first` on, zeros where there are none.
fn stage_values(tile: Tile, first: u32, lane: u32) {
    for (var i = lane; i < STAGED; i += THREADS) {
        let key = first + i / HEAD_DIM_VEC4;
        var vector = vec4<f32>();
        if (key < tile.key_end) {
            let value = widen(v[key_index(tile, key) + i % HEAD_DIM_VEC4]);
            vector = select(vec4<f32>(), value, is_finite(value));
            if (!all(is_finite(value))) {
                atomicStore(&not_finite, 1u);
            }
        }
        values[i] = vector;
    }
}

fn clear_scores(r: u32) {
    scores[r] = array<vec4<f32>, 2>();
}

// Sets the scores of keys from `limit` on to SCORE_FLOOR. Done in every step, because a branch around it would cost more: scores
// would then have to be kept across the branch.
fn mask_row(r: u32, first: u32, limit: u32) {
    scores[r][0] = select(vec4<f32>(SCORE_FLOOR), scores[r][0], first + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(limit));
    if (KEYS > 4u) {
        scores[r][1] = select(vec4<f32>(SCORE_FLOOR), scores[r][1], first + vec4<u32>(4u, 5u, 6u, 7u) < vec4<u32>(limit));
    }
}

fn highest(r: u32) -> f32 {
    if (r >= ROWS_PER_LANE) {
        return SCORE_FLOOR;
    }
    var high = scores[r][0];
    if (KEYS > 4u) {
        high = max(high, scores[r][1]);
    }
    return max(max(high.x, high.y), max(high.z, high.w));
}

fn weigh_row(r: u32) {
    scores[r][0] = exp2(scores[r][0] - top[r]);
    sums[r] += scores[r][0];
    if (KEYS > 4u) {
        scores[r][1] = exp2(scores[r][1] - top[r]);
        sums[r] += scores[r][1];
    }
}

// Turns the scores of the staged keys into weights. Row r of the lane sees the keys before limits[r]. Other keys have the weight
// 2^(SCORE_FLOOR - top) = 0. As long as a row has seen no key, top is SCORE_FLOOR and these weights are 1; what they add is
// multiplied by 2^(SCORE_FLOOR - top) = 0 when the row sees its first key, or dropped at the end.
fn weigh_scores(first: u32, limits: vec4<u32>) {
    mask_row(0u, first, limits.x);
    mask_row(1u, first, limits.y);
    mask_row(2u, first, limits.z);
    mask_row(3u, first, limits.w);
    let high = vec4<f32>(highest(0u), highest(1u), highest(2u), highest(3u));
    if (any(high > top + GROWTH)) {
        // Only rows that have grown are rescaled: the result of a row must not depend on the scores of others.
        let higher = select(top, high, high > top + GROWTH);
        shrink = exp2(top - higher);
        top = higher;
        sums[0] *= shrink.x;
        sums[1] *= shrink.y;
        sums[2] *= shrink.z;
        sums[3] *= shrink.w;
#for c in range(head_dim // 4)
        shrink_output(${c}u);
#endfor
    }
    weigh_row(0u);
    weigh_row(1u);
    weigh_row(2u);
    weigh_row(3u);
}

fn end_row(tile: Tile, r: u32, row: u32) {
    if (r < ROWS_PER_LANE && row < tile.row_end) {
        end = finish_row(tile, row, top[r], select(0.0, dot(sums[r], vec4<f32>(1.0)), top[r] != SCORE_FLOOR));
        place = output_index(output_place(tile, row));
#for c in range(head_dim // 4)
        store(r, ${c}u);
#endfor
    }
}

// Adds values that are NaN or infinity to the outputs of the rows that see them. The steps stage them as 0, because a row that does
// not see the key would add 0 * NaN. The weight does not matter here: the sum is not finite in any case. A single loop, because
// drivers compile nested loops here for as long as all the rest.
fn add_not_finite(tile: Tile, rows: vec4<u32>) {
    let limits = find_limits(tile, rows);
    let span = (tile.key_end - tile.key_begin) * HEAD_DIM_VEC4;
    for (var i = 0u; i < ROWS_PER_LANE * span; i++) {
        let r = i / span;
        let key = tile.key_begin + i % span / HEAD_DIM_VEC4;
        if (rows[r] < tile.row_end && key < limits[r]) {
            let value = widen(v[key_index(tile, key) + i % HEAD_DIM_VEC4]);
            let at = output_index(output_place(tile, rows[r])) + i % HEAD_DIM_VEC4;
            out[at] = narrow(widen(out[at]) + select(value, vec4<f32>(), is_finite(value)));
        }
    }
}

// The rows of a lane. Rows of a group of lanes are contiguous, so that under the causal mask a group can stop at the keys of its last row.
fn find_rows(tile: Tile, lane: u32) -> vec4<u32> {
    return vec4<u32>(group_begin(tile, lane) + lane % LANES) + LANES * vec4<u32>(0u, 1u, 2u, 3u);
}

fn group_begin(tile: Tile, lane: u32) -> u32 {
    return tile.row_begin + lane / LANES * ROWS_PER_GROUP;
}

// For each row: it sees the keys before this one.
fn find_limits(tile: Tile, rows: vec4<u32>) -> vec4<u32> {
    return select(vec4<u32>(tile.key_end), min(rows + 1u, vec4<u32>(tile.key_end)), vec4<bool>(has_flag(FLAG_CAUSAL)));
}

// No row of the lane's group sees a key from this one on.
fn find_group_limit(tile: Tile, lane: u32) -> u32 {
    let begin = group_begin(tile, lane);
    let limit = select(tile.key_end, min(tile.key_end, begin + ROWS_PER_GROUP), has_flag(FLAG_CAUSAL));
    return select(limit, 0u, begin >= tile.row_end);
}

fn attend(workgroup: vec3<u32>, invocation: u32) {
    let tile = locate_tile(workgroup, ROWS_PER_WORKGROUP);
    let rows = find_rows(tile, invocation);
    top = vec4<f32>(SCORE_FLOOR);
    begin_row(tile, 0u, rows.x);
    begin_row(tile, 1u, rows.y);
    begin_row(tile, 2u, rows.z);
    begin_row(tile, 3u, rows.w);
    if (invocation == 0u) {
        atomicStore(&not_finite, 0u);
    }
    stage_keys(tile, tile.key_begin, invocation);
    // Copied to a variable that the loop seems to change. Otherwise compilers compute the index anew after every barrier, with two
    // divisions for each lane of a vector, which takes a fifth of the time.
    var lane = invocation;
    for (var first = tile.key_begin; first < tile.key_end; first += KEYS) {
        lane = select(lane, 0u, first == 0xffffffffu);
        let seen = first < find_group_limit(tile, lane);
        workgroupBarrier();
        stage_values(tile, first, lane);
        if (seen) {
            clear_scores(0u);
            clear_scores(1u);
            clear_scores(2u);
            clear_scores(3u);
#for c in range(head_dim // 4)
            add_scores(${c}u);
#endfor
            weigh_scores(first, find_limits(tile, find_rows(tile, lane)));
        }
        workgroupBarrier();
        stage_keys(tile, first + KEYS, lane);
        if (seen) {
#for c in range(head_dim // 4)
            add_values(${c}u);
#endfor
        }
    }
    // Needed when there are no keys: then no barrier has followed the store to the flag.
    workgroupBarrier();
    merges = has_flag(FLAG_MERGE);
    end_row(tile, 0u, rows.x);
    end_row(tile, 1u, rows.y);
    end_row(tile, 2u, rows.z);
    end_row(tile, 3u, rows.w);
    if (atomicLoad(&not_finite) != 0u) {
        add_not_finite(tile, rows);
    }
}
