// Weights of the backward: the share of a pair in its row's softmax follows from the score and the row's statistics.

#include "geometry.wgsl"

@group(0) @binding(1) var<storage, read> q: array<Stored4>;
@group(0) @binding(2) var<storage, read> k: array<Stored4>;
@group(0) @binding(3) var<storage, read> v: array<Stored4>;
@group(0) @binding(4) var<storage, read> dout: array<Stored4>;

// What the sweep leaves of each row and head:
//   x  m, relative to which weights 2^(score - m) are taken, in log2 units
//   y  what they are divided by to be shares
//   z  the sum of the weights over the keys whose mean of dout . v is taken off
//   w  the sum of weights times dout . v over the same keys
// One over y, and that mean, are left to the kernels that use them: sums can be added to, whatever comes later.
struct RowStats {
    top: f32,
    norm: f32, // a factor
    mean: f32,
}

fn load_row_stats(tile: Tile, row: u32) -> RowStats {
    if (row >= tile.row_end) {
        return RowStats(0.0, 0.0, 0.0);
    }
    let sums = row_stats[params.row_stats_skip + output_place(tile, row)];
    // Where nothing but weights that vanish is seen, no gradient flows.
    return RowStats(sums.x, 1.0 / max(sums.y, 1e-37), sums.w / max(sums.z, 1e-37));
}

// The same of four rows, or keys: one vec4 each.
struct RowStats4 {
    top: vec4<f32>,
    norm: vec4<f32>,
    mean: vec4<f32>,
}

fn row_stats4(a: RowStats, b: RowStats, c: RowStats, d: RowStats) -> RowStats4 {
    return RowStats4(vec4<f32>(a.top, b.top, c.top, d.top), vec4<f32>(a.norm, b.norm, c.norm, d.norm), vec4<f32>(a.mean, b.mean, c.mean, d.mean));
}

// 2^(score - m), at most 2^8 but for rounding; the bound keeps infinities out of pairs that are dropped. In one rounding of the
// difference, and by the same operations in every kernel: the rows of ds add up to 0 only if the sweep's weights are the
// weights that gradients are summed with.
fn weights_of(scores: vec4<f32>, top: vec4<f32>, seen: vec4<bool>) -> vec4<f32> {
    return select(vec4<f32>(), exp2(min(fma(scores, vec4<f32>(params.scale_log2e), -top), vec4<f32>(64.0))), seen);
}

// Weights as shares of the softmax.
fn shares(scores: vec4<f32>, top: vec4<f32>, norm: vec4<f32>, seen: vec4<bool>) -> vec4<f32> {
    return norm * weights_of(scores, top, seen);
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
