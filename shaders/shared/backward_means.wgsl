// The end of a row of the means kernels.

fn row_lse(tile: Tile, row: u32) -> f32 {
    if (row >= tile.row_end) {
        return 0.0;
    }
    return softmax_lse[params.lse_skip + output_place(tile, row)];
}

// Adds a row's sums of p * dp and of p to those of the keys before; after the last keys, their ratio is the mean.
fn store_mean(tile: Tile, row: u32, sums: vec2<f32>) {
    let lse = row_lse(tile, row);
    var total = sums;
    let zeros = zero_keys(tile, row);
    if (zeros > 0u) {
        total.y += f32(zeros) * exp2(min(-lse * LOG2_E, 64.0));
    }
    let at = params.terms_skip + output_place(tile, row);
    if (has_flag(FLAG_MERGE)) {
        total += terms[at];
    }
    if (has_flag(FLAG_LAST_KEYS)) {
        // Nothing but weights that vanish: no gradient flows.
        let mean = total.x / max(total.y, 1e-37);
        total = vec2<f32>(lse, mean);
    }
    terms[at] = total;
}
