// Bindings and row statistics of the backward, and what they give for a pair of a row and a key: the weight p = 2^(score - m), its
// share of the row's softmax, and the gradient of the score.

#include "geometry.wgsl"

@group(0) @binding(1) var<storage, read> q: array<Stored4>;
@group(0) @binding(2) var<storage, read> k: array<Stored4>;
@group(0) @binding(3) var<storage, read> v: array<Stored4>;
@group(0) @binding(4) var<storage, read> dout: array<Stored4>;

// The row statistics that the sweep leaves for each row and head are a vec4:
//   x  m, the number that weights are relative to, in log2 units
//   y  the sum by which a weight is divided to become its share of the softmax
//   z  the sum of the weights over the keys that the sweep covers
//   w  the sum of weight times dout . v over the same keys
// They are sums, so that later dispatches of the sweep can add to them. The kernels that use them form the quotients:
struct RowStats {
    top: f32, // x
    norm: f32, // 1 / y
    mean: f32, // w / z: the mean of dout . v, which is subtracted from each key's
}

fn load_row_stats(tile: Tile, row: u32) -> RowStats {
    if (row >= tile.row_end) {
        return RowStats(0.0, 0.0, 0.0);
    }
    let sums = row_stats[params.row_stats_skip + output_place(tile, row)];
    // The lower bound keeps the quotients finite. A row whose weights are all 0 has no gradient.
    return RowStats(sums.x, 1.0 / max(sums.y, 1e-37), sums.w / max(sums.z, 1e-37));
}

// The RowStats of four rows, one vec4 for each term.
struct RowStats4 {
    top: vec4<f32>,
    norm: vec4<f32>,
    mean: vec4<f32>,
}

fn row_stats4(a: RowStats, b: RowStats, c: RowStats, d: RowStats) -> RowStats4 {
    return RowStats4(vec4<f32>(a.top, b.top, c.top, d.top), vec4<f32>(a.norm, b.norm, c.norm, d.norm), vec4<f32>(a.mean, b.mean, c.mean, d.mean));
}

// The weights 2^(score - m) of four pairs; 0 for pairs that do not see each other. m is at most 8 below the largest score, so
// weights are at most 2^8 up to rounding; the bound 2^64 only keeps infinity out of pairs that are dropped. One fma rounds the
// difference once. Every kernel uses these same operations: the rows of ds sum to 0 only if the gradients use exactly the weights
// of the sweep.
fn weights_of(scores: vec4<f32>, top: vec4<f32>, seen: vec4<bool>) -> vec4<f32> {
    return select(vec4<f32>(), exp2(min(fma(scores, vec4<f32>(params.scale_log2e), -top), vec4<f32>(64.0))), seen);
}

// The weights' shares of the row's softmax.
fn shares(scores: vec4<f32>, top: vec4<f32>, norm: vec4<f32>, seen: vec4<bool>) -> vec4<f32> {
    return norm * weights_of(scores, top, seen);
}

// Gradients of the scores: share * (dp - mean), where dp = dout . v. 0 for pairs that do not see each other, whose dp may be NaN.
fn score_gradients(share: vec4<f32>, dp: vec4<f32>, mean: vec4<f32>, seen: vec4<bool>) -> vec4<f32> {
    return select(vec4<f32>(), share * (params.out_scale * dp - mean), seen);
}

// The row sees the keys before this one.
fn end_of_seen(tile: Tile, row: u32) -> u32 {
    let last = select(tile.key_end, min(tile.key_end, row + 1u), has_flag(FLAG_CAUSAL));
    return select(0u, last, row < tile.row_end);
}

fn seen_keys(tile: Tile, row: u32, keys: vec4<u32>) -> vec4<bool> {
    return keys < vec4<u32>(end_of_seen(tile, row));
}

// Which of four rows see a key.
fn seeing_rows(tile: Tile, key: u32, rows: vec4<u32>) -> vec4<bool> {
    let first = select(tile.row_begin, max(tile.row_begin, key), has_flag(FLAG_CAUSAL));
    return (rows >= vec4<u32>(first)) & (rows < vec4<u32>(select(0u, tile.row_end, key < tile.key_end)));
}
