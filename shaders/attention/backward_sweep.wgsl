// The sweep: for each row, the sum of its weights and of weights times dout . v, over the keys of all branches; where mixing
// weights are constants, over those of one branch. Later dispatches add to what earlier ones left.

@group(0) @binding(5) var<storage, read> softmax_state: array<vec2<f32>>;
@group(0) @binding(6) var<storage, read_write> row_stats: array<vec4<f32>>;

fn row_state(tile: Tile, row: u32) -> vec2<f32> {
    if (row >= tile.row_end) {
        return vec2<f32>();
    }
    return softmax_state[params.state_skip + output_place(tile, row)];
}

fn row_top(tile: Tile, row: u32) -> f32 {
    return row_state(tile, row).x;
}

// Adds a row's sums of p and of p * dp to those of the keys before.
fn store_row_sums(tile: Tile, row: u32, sums: vec2<f32>) {
    let state = row_state(tile, row);
    var total = sums;
    let zeros = zero_keys(tile, row);
    if (zeros > 0u) {
        total.x = fma(f32(zeros), exp2(min(-state.x, 64.0)), total.x);
    }
    let at = params.row_stats_skip + output_place(tile, row);
    if (has_flag(FLAG_MERGE)) {
        total += row_stats[at].zw;
    }
    // Shares of all branches' keys are divided by the sweep's own sum, so that they add up to 1 whatever the scores lost since
    // the forward. A sweep over one branch only knows the forward's.
    row_stats[at] = vec4<f32>(state.x, select(total.x, state.y, has_flag(FLAG_DETACHED)), total);
}
