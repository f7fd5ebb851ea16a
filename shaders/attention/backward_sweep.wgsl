// The sweep, the first pass of the backward: for each row, the sum of its weights and the sum of weight times dout . v. It covers
// the keys of all branches; where the gradient treats mixing weights as constants (FLAG_DETACHED), those of one branch. Later
// dispatches add to the sums of earlier ones. backward_pairs.wgsl says what is stored.

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

// Stores a row's sums of weights and of weights times dout . v, added to the sums of earlier keys if there are any.
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
    // The divisor of shares. A sweep over all branches uses its own sum, so that shares sum to 1 even if scores round differently
    // than in the forward. A sweep over one branch has no such sum and uses the forward's.
    row_stats[at] = vec4<f32>(state.x, select(total.x, state.y, has_flag(FLAG_DETACHED)), total);
}
