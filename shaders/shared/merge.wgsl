// The end of a row: from its running softmax (maximum, sum, unnormalised output) to the (O, LSE) pair in memory, written
// or merged with what is there.

// LSE of a row that no key has reached: finite, since WGSL has no infinities.
const UNCOVERED: f32 = -1e30;
// The running maximum before the first key. Lower than any score of finite logits down to -2e38, and far enough from the
// largest f32 that score - SCORE_FLOOR stays finite for scores up to 4e37.
const SCORE_FLOOR: f32 = -3e38;

struct RowEnd {
    kept: f32, // factor on the output in memory
    added: f32, // factor on the accumulator
}

// log2 with one Newton step on exp2: software adapters evaluate log2 with a short polynomial.
fn log2_refined(x: f32) -> f32 {
    let y = log2(x);
    return y + (x * exp2(-y) - 1.0) * LOG2_E;
}

// Writes the row's LSE and returns how to combine the output. Call once per row, and only for rows of the tile.
fn finish_row(tile: Tile, row: u32, row_max: f32, row_sum: f32) -> RowEnd {
    var top = row_max;
    var sum = row_sum;
    var shrink = 1.0;
    let zeros = zero_keys(tile, row);
    if (zeros > 0u) {
        // All zero keys at once: score 0, value 0.
        top = max(row_max, 0.0);
        shrink = exp2(row_max - top);
        sum = row_sum * shrink + f32(zeros) * exp2(-top);
    }
    var lse = UNCOVERED;
    var end: RowEnd;
    end.kept = 0.0;
    end.added = 0.0;
    // Written so that a NaN sum counts as covered.
    if (!(sum == 0.0)) {
        lse = (top + log2_refined(sum)) * LN_2;
        end.added = shrink * params.out_scale / sum;
    }
    let at = params.lse_skip + output_place(tile, row);
    if (has_flag(FLAG_MERGE)) {
        let old = softmax_lse[at];
        let high = max(old, lse);
        let weight_old = exp2((old - high) * LOG2_E);
        let weight_new = exp2((lse - high) * LOG2_E);
        let total = weight_old + weight_new;
        end.kept = weight_old / total;
        end.added = end.added * (weight_new / total);
        lse = high + log2_refined(total) * LN_2;
    }
    softmax_lse[at] = lse;
    return end;
}

fn store_output(at: u32, end: RowEnd, value: vec4<f32>) {
    var result = end.added * value;
    if (has_flag(FLAG_MERGE)) {
        result = fma(vec4<f32>(end.kept), widen(out[at]), result);
    }
    out[at] = narrow(result);
}
