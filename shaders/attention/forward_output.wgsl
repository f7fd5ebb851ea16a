// Bindings of the forward, and how it finishes a row: the running softmax in registers (maximum, sum, unnormalised output) becomes
// the normalised output and the row's softmax state (m, s) in memory. Both are written, or merged with what earlier dispatches left
// there.
//
//   s = sum of 2^(score - m) over all keys so far, scores in log2 units
//   m = the largest score, or a number at most 8 below it
//
// A row without any key has the state (0, 0), and no other row has s = 0. The states of two sets of keys merge to
//   m = max(m1, m2)    s = s1 2^(m1 - m) + s2 2^(m2 - m)
// The state does not hold m + log2(s), because next to a large m the logarithm would lose the digits of s.

#include "geometry.wgsl"

@group(0) @binding(1) var<storage, read> q: array<Stored4>;
@group(0) @binding(2) var<storage, read> k: array<Stored4>;
@group(0) @binding(3) var<storage, read> v: array<Stored4>;
@group(0) @binding(4) var<storage, read_write> out: array<Stored4>;
@group(0) @binding(5) var<storage, read_write> softmax_state: array<vec2<f32>>;

// The running maximum before the first key. It is lower than any score down to -2e38, and far enough from the largest f32 that
// score - SCORE_FLOOR stays finite for scores up to 4e37.
const SCORE_FLOOR: f32 = -3e38;

struct RowEnd {
    kept: f32, // factor on the output in memory
    added: f32, // factor on the accumulator
}

// Writes the row's state and returns how to combine the output. Call once per row, and only for rows of the tile.
fn finish_row(tile: Tile, row: u32, row_max: f32, row_sum: f32) -> RowEnd {
    let at = params.state_skip + output_place(tile, row);
    let zeros = f32(zero_keys(tile, row));
    var old = vec2<f32>();
    if (has_flag(FLAG_MERGE)) {
        old = softmax_state[at];
    }
    // Compared with == 0, so that a row whose sum is NaN counts as one with keys.
    let old_max = select(old.x, SCORE_FLOOR, old.y == 0.0);
    let new_max = select(row_max, SCORE_FLOOR, row_sum == 0.0);
    var top = max(old_max, new_max);
    if (zeros > 0.0) {
        // All zero keys at once: each adds 2^(0 - top) to the sum and nothing to the output.
        top = max(top, 0.0);
    }
    let kept = old.y * exp2(old_max - top);
    let factor = exp2(new_max - top);
    var total = fma(row_sum, factor, kept);
    if (zeros > 0.0) {
        total = fma(zeros, exp2(-top), total);
    }
    var end: RowEnd;
    if (total == 0.0) {
        softmax_state[at] = vec2<f32>();
        return end;
    }
    softmax_state[at] = vec2<f32>(top, total);
    end.kept = kept / total;
    end.added = params.out_scale * factor / total;
    return end;
}

// Writes or merges one vec4 of a row's output: `value` is the unnormalised sum.
fn store_output(at: u32, end: RowEnd, value: vec4<f32>) {
    var result = end.added * value;
    if (has_flag(FLAG_MERGE)) {
        result = fma(vec4<f32>(end.kept), widen(out[at]), result);
    }
    out[at] = narrow(result);
}
