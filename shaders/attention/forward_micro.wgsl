// Forward attention for CPU adapters whose every load is one scalar load per lane (lavapipe up to Mesa 25.0): what counts
// is fma per load, so each thread owns an 8 x 8 micro-tile of scores and loads q, k and v directly where it needs them.
// Loops stay rolled: the compile time of such a driver grows faster than the code.
//
// 4 groups of 8 lanes: a group owns every 4th row of 32, a lane every 8th key of 64 and every 8th vec4 column of the
// output. Only the weights and row maxima pass through workgroup memory: 8192 + 1024 bytes for every head size.
// Prelude: HEAD_DIM_VEC4.

const LANE_COLUMNS: u32 = (HEAD_DIM_VEC4 + 7u) / 8u; // vec4 columns of the output per thread
const ROWS: u32 = 32u;
const KEYS: u32 = 64u;

var<workgroup> left: array<vec4<f32>, ROWS * KEYS / 4u>;
var<workgroup> partial: array<vec4<f32>, 64>;

struct Thread {
    group: u32,
    lane: u32,
}

// The thread's 8 rows in one vec4 of columns.
struct Output {
    low: mat4x4<f32>,
    high: mat4x4<f32>,
}

fn query_block(at: vec4<u32>, c: u32) -> mat4x4<f32> {
    return mat4x4<f32>(q[at.x + c], q[at.y + c], q[at.z + c], q[at.w + c]);
}

fn key_block(at: vec4<u32>, c: u32) -> mat4x4<f32> {
    return transpose(mat4x4<f32>(k[at.x + c], k[at.y + c], k[at.z + c], k[at.w + c]));
}

// Element indices of rows (keys) row, row + step, ..., those beyond the last of the tile replaced by it: masked later.
fn query_indices(tile: Tile, row: u32) -> vec4<u32> {
    let end = min(tile.row_end, tile.real_rows);
    if (end <= tile.row_begin) {
        // Phantom rows alone: any element that is bound will do.
        return vec4<u32>(params.q_skip);
    }
    let last = end - 1u;
    return vec4<u32>(query_index(tile, min(row, last)), query_index(tile, min(row + 4u, last)),
        query_index(tile, min(row + 8u, last)), query_index(tile, min(row + 12u, last)));
}

fn key_indices(tile: Tile, key: u32) -> vec4<u32> {
    let last = tile.key_end - 1u;
    return vec4<u32>(key_index(tile, min(key, last)), key_index(tile, min(key + 8u, last)),
        key_index(tile, min(key + 16u, last)), key_index(tile, min(key + 24u, last)));
}

// Phantom rows: q = 0, so every score is 0.
fn clear_phantom(block: mat4x4<f32>, rows: vec4<u32>, real_rows: u32) -> mat4x4<f32> {
    let zero = vec4<f32>();
    return mat4x4<f32>(select(zero, block[0], rows.x < real_rows), select(zero, block[1], rows.y < real_rows),
        select(zero, block[2], rows.z < real_rows), select(zero, block[3], rows.w < real_rows));
}

fn keep_weights(row: u32, column: u32, p: mat4x4<f32>) {
    let at = row * (KEYS / 4u) + column;
    left[at] = p[0];
    left[at + KEYS] = p[1];
    left[at + 2u * KEYS] = p[2];
    left[at + 3u * KEYS] = p[3];
}

fn left_block(row: u32, column: u32) -> mat4x4<f32> {
    let at = row * (KEYS / 4u) + column;
    return mat4x4<f32>(left[at], left[at + KEYS], left[at + 2u * KEYS], left[at + 3u * KEYS]);
}

fn partial_max(thread: Thread, half: u32) -> vec4<f32> {
    let at = thread.group * 16u + half * 8u;
    var top = partial[at];
    for (var i = 1u; i < 8u; i++) {
        top = max(top, partial[at + i]);
    }
    return top;
}

fn value_block(at: vec4<u32>, column: u32) -> mat4x4<f32> {
    let c = min(column, HEAD_DIM_VEC4 - 1u);
    return mat4x4<f32>(v[at.x + c], v[at.y + c], v[at.z + c], v[at.w + c]);
}

fn add(output: Output, low: mat4x4<f32>, high: mat4x4<f32>, values: mat4x4<f32>, seen: bool) -> Output {
    if (seen) {
        return Output(multiply_add(output.low, low, values), multiply_add(output.high, high, values));
    }
    return Output(multiply_add_seen(output.low, low, values), multiply_add_seen(output.high, high, values));
}

fn store_row(tile: Tile, row: u32, column: u32, value: vec4<f32>) {
    if (tile.row_begin + row < tile.row_end && column < HEAD_DIM_VEC4) {
        let factors = left[row];
        let to = output_index(output_place(tile, tile.row_begin + row)) + column;
        store_output(to, RowEnd(factors.x, factors.y), value);
    }
}

fn store_column(tile: Tile, thread: Thread, chunk: u32, output: Output) {
    let column = chunk * 8u + thread.lane;
    store_row(tile, thread.group, column, output.low[0]);
    store_row(tile, thread.group + 4u, column, output.low[1]);
    store_row(tile, thread.group + 8u, column, output.low[2]);
    store_row(tile, thread.group + 12u, column, output.low[3]);
    store_row(tile, thread.group + 16u, column, output.high[0]);
    store_row(tile, thread.group + 20u, column, output.high[1]);
    store_row(tile, thread.group + 24u, column, output.high[2]);
    store_row(tile, thread.group + 28u, column, output.high[3]);
}

@compute @workgroup_size(32)
fn forward_micro(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let tile = locate_tile(workgroup, ROWS);
    let thread = Thread(index / 8u, index % 8u);
    let rows_low = vec4<u32>(tile.row_begin + thread.group) + vec4<u32>(0u, 4u, 8u, 12u);
    let rows_high = rows_low + 16u;
    let query_low = query_indices(tile, rows_low.x);
    let query_high = query_indices(tile, rows_high.x);
    let causal = has_flag(FLAG_CAUSAL);
    var top_low = vec4<f32>(SCORE_FLOOR);
    var top_high = vec4<f32>(SCORE_FLOOR);
    var sum_low = vec4<f32>();
    var sum_high = vec4<f32>();
    var output_0: Output;
    var output_1: Output;
    var output_2: Output;
    var output_3: Output;
    var output_4: Output;
    var output_5: Output;
    var output_6: Output;
    var output_7: Output;
    for (var key_tile = tile.key_begin; key_tile < tile.key_end; key_tile += KEYS) {
        let first_keys = key_indices(tile, key_tile + thread.lane);
        let last_keys = key_indices(tile, key_tile + thread.lane + 32u);
        var a = mat4x4<f32>();
        var b = mat4x4<f32>();
        var c = mat4x4<f32>();
        var d = mat4x4<f32>();
        for (var i = 0u; i < HEAD_DIM_VEC4; i++) {
            let low = query_block(query_low, i);
            let high = query_block(query_high, i);
            let first = key_block(first_keys, i);
            let last = key_block(last_keys, i);
            a = multiply_add(a, low, first);
            b = multiply_add(b, low, last);
            c = multiply_add(c, high, first);
            d = multiply_add(d, high, last);
        }
        a *= params.scale_log2e;
        b *= params.scale_log2e;
        c *= params.scale_log2e;
        d *= params.scale_log2e;
        if (key_tile + KEYS > tile.key_full || tile.row_end > tile.real_rows) {
            let keys = vec4<u32>(key_tile + thread.lane) + vec4<u32>(0u, 8u, 16u, 24u);
            a = mask_scores(clear_phantom(a, rows_low, tile.real_rows), rows_low, keys, tile.key_end, causal);
            b = mask_scores(clear_phantom(b, rows_low, tile.real_rows), rows_low, keys + 32u, tile.key_end, causal);
            c = mask_scores(clear_phantom(c, rows_high, tile.real_rows), rows_high, keys, tile.key_end, causal);
            d = mask_scores(clear_phantom(d, rows_high, tile.real_rows), rows_high, keys + 32u, tile.key_end, causal);
        }
        partial[thread.group * 16u + thread.lane] = max(row_max(a), row_max(b));
        partial[thread.group * 16u + 8u + thread.lane] = max(row_max(c), row_max(d));
        workgroupBarrier();
        let new_low = max(top_low, partial_max(thread, 0u));
        let new_high = max(top_high, partial_max(thread, 1u));
        let shrink_low = exp2(top_low - new_low);
        let shrink_high = exp2(top_high - new_high);
        top_low = new_low;
        top_high = new_high;
        a = weights(a, new_low);
        b = weights(b, new_low);
        c = weights(c, new_high);
        d = weights(d, new_high);
        sum_low = fma(sum_low, shrink_low, row_sum(a) + row_sum(b));
        sum_high = fma(sum_high, shrink_high, row_sum(c) + row_sum(d));
        keep_weights(thread.group, thread.lane, a);
        keep_weights(thread.group, thread.lane + 8u, b);
        keep_weights(thread.group + 16u, thread.lane, c);
        keep_weights(thread.group + 16u, thread.lane + 8u, d);
        output_0 = Output(scale_rows(output_0.low, shrink_low), scale_rows(output_0.high, shrink_high));
        if (LANE_COLUMNS > 1u) { output_1 = Output(scale_rows(output_1.low, shrink_low), scale_rows(output_1.high, shrink_high)); }
        if (LANE_COLUMNS > 2u) { output_2 = Output(scale_rows(output_2.low, shrink_low), scale_rows(output_2.high, shrink_high)); }
        if (LANE_COLUMNS > 3u) { output_3 = Output(scale_rows(output_3.low, shrink_low), scale_rows(output_3.high, shrink_high)); }
        if (LANE_COLUMNS > 4u) { output_4 = Output(scale_rows(output_4.low, shrink_low), scale_rows(output_4.high, shrink_high)); }
        if (LANE_COLUMNS > 5u) { output_5 = Output(scale_rows(output_5.low, shrink_low), scale_rows(output_5.high, shrink_high)); }
        if (LANE_COLUMNS > 6u) { output_6 = Output(scale_rows(output_6.low, shrink_low), scale_rows(output_6.high, shrink_high)); }
        if (LANE_COLUMNS > 7u) { output_7 = Output(scale_rows(output_7.low, shrink_low), scale_rows(output_7.high, shrink_high)); }
        workgroupBarrier();
        let seen = key_tile + KEYS <= tile.key_full;
        for (var i = 0u; i < 16u; i++) {
            let at = key_indices(tile, key_tile + (i / 8u) * 32u + i % 8u);
            let low = left_block(thread.group, i);
            let high = left_block(thread.group + 16u, i);
            output_0 = add(output_0, low, high, value_block(at, 0u * 8u + thread.lane), seen);
            if (LANE_COLUMNS > 1u) { output_1 = add(output_1, low, high, value_block(at, 1u * 8u + thread.lane), seen); }
            if (LANE_COLUMNS > 2u) { output_2 = add(output_2, low, high, value_block(at, 2u * 8u + thread.lane), seen); }
            if (LANE_COLUMNS > 3u) { output_3 = add(output_3, low, high, value_block(at, 3u * 8u + thread.lane), seen); }
            if (LANE_COLUMNS > 4u) { output_4 = add(output_4, low, high, value_block(at, 4u * 8u + thread.lane), seen); }
            if (LANE_COLUMNS > 5u) { output_5 = add(output_5, low, high, value_block(at, 5u * 8u + thread.lane), seen); }
            if (LANE_COLUMNS > 6u) { output_6 = add(output_6, low, high, value_block(at, 6u * 8u + thread.lane), seen); }
            if (LANE_COLUMNS > 7u) { output_7 = add(output_7, low, high, value_block(at, 7u * 8u + thread.lane), seen); }
        }
        workgroupBarrier();
    }

    // The lanes' sums; then lane i of a group ends the group's row i and leaves its factors for the other lanes.
    partial[thread.group * 16u + thread.lane] = sum_low;
    partial[thread.group * 16u + 8u + thread.lane] = sum_high;
    workgroupBarrier();
    let row = thread.group + 4u * thread.lane;
    if (tile.row_begin + row < tile.row_end) {
        let part = thread.lane % 4u;
        let at = thread.group * 16u + (thread.lane / 4u) * 8u;
        var sum = 0.0;
        for (var i = 0u; i < 8u; i++) {
            sum += partial[at + i][part];
        }
        let top = select(top_low, top_high, thread.lane >= 4u)[part];
        let end = finish_row(tile, tile.row_begin + row, top, sum);
        left[row] = vec4<f32>(end.kept, end.added, 0.0, 0.0);
    }
    workgroupBarrier();
    store_column(tile, thread, 0u, output_0);
    if (LANE_COLUMNS > 1u) { store_column(tile, thread, 1u, output_1); }
    if (LANE_COLUMNS > 2u) { store_column(tile, thread, 2u, output_2); }
    if (LANE_COLUMNS > 3u) { store_column(tile, thread, 3u, output_3); }
    if (LANE_COLUMNS > 4u) { store_column(tile, thread, 4u, output_4); }
    if (LANE_COLUMNS > 5u) { store_column(tile, thread, 5u, output_5); }
    if (LANE_COLUMNS > 6u) { store_column(tile, thread, 6u, output_6); }
    if (LANE_COLUMNS > 7u) { store_column(tile, thread, 7u, output_7); }
}
