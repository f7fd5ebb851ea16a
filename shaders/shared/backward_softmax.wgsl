// Weights of the backward: the share of a pair in its row's softmax follows from the score and the row's LSE alone.

// LSE and mean of dout . v of a row, 0 beyond the last.
fn row_terms(tile: Tile, row: u32) -> vec2<f32> {
    if (row >= tile.row_end) {
        return vec2<f32>();
    }
    return terms[params.terms_skip + output_place(tile, row)];
}

// e^(score - lse), at most 1 but for rounding; the bound keeps infinities out of pairs that are dropped. The
// score is rounded as in the forward, and the difference once: with large scores each rounding shows.
fn shares(scores: vec4<f32>, lse: vec4<f32>, seen: vec4<bool>) -> vec4<f32> {
    return select(vec4<f32>(), exp2(min(fma(scores * params.scale_log2e, vec4<f32>(LN_2), -lse) * LOG2_E, vec4<f32>(64.0))), seen);
}

// 0 for pairs that do not see each other: theirs may be NaN.
fn score_gradients(share: vec4<f32>, dp: vec4<f32>, mean: vec4<f32>, seen: vec4<bool>) -> vec4<f32> {
    return select(vec4<f32>(), share * (params.out_scale * dp - mean), seen);
}

// The end of the keys that a row sees.
fn end_of_seen(tile: Tile, row: u32) -> u32 {
    let last = select(tile.key_end, min(tile.key_end, row + 1u), has_flag(FLAG_CAUSAL));
    return select(0u, last, row < tile.row_end);
}

fn seen_keys(tile: Tile, row: u32, keys: vec4<u32>) -> vec4<bool> {
    return keys < vec4<u32>(end_of_seen(tile, row));
}

// Rows that see a key.
fn seeing_rows(tile: Tile, key: u32, rows: vec4<u32>) -> vec4<bool> {
    let first = select(tile.row_begin, max(tile.row_begin, key), has_flag(FLAG_CAUSAL));
    return (rows >= vec4<u32>(first)) & (rows < vec4<u32>(select(0u, tile.row_end, key < tile.key_end)));
}
