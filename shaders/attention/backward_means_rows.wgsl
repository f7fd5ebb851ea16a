// For gradients that hold the mixing weights constant: the mean of dout . v over the keys of one branch alone, for each
// row, on CPUs: lanes own rows, keys are staged; shared/backward_rows.wgsl says how.

@group(0) @binding(5) var<storage, read> softmax_lse: array<f32>;
@group(0) @binding(6) var<storage, read_write> terms: array<vec2<f32>>;

fn load_a(i: u32) -> vec4<f32> {
    return q[i];
}

fn load_b(i: u32) -> vec4<f32> {
    return dout[i];
}

fn store(i: u32, of_a: vec4<f32>, of_b: vec4<f32>) {
}

@compute @workgroup_size(THREADS)
fn backward_means_rows(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let tile = locate_tile(workgroup, SIDE);
    let row_0 = tile.row_begin + lane;
    let row_1 = row_0 + THREADS;
    // Rows without a query, and those beyond the tile, keep zeros.
    let query_end = min(tile.row_end, tile.real_rows);
    if (row_0 < query_end) {
        at = query_index(tile, row_0);
        each_column(LOAD_A);
    }
    if (row_1 < query_end) {
        at = query_index(tile, row_1);
        each_column(LOAD_A + 1u);
    }
    if (row_0 < tile.row_end) {
        at = output_index(output_place(tile, row_0));
        each_column(LOAD_B);
    }
    if (row_1 < tile.row_end) {
        at = output_index(output_place(tile, row_1));
        each_column(LOAD_B + 1u);
    }
    let lse_0 = vec4<f32>(row_lse(tile, row_0));
    let lse_1 = vec4<f32>(row_lse(tile, row_1));
    var weight_0 = vec4<f32>();
    var weight_1 = vec4<f32>();
    var weighted_0 = vec4<f32>();
    var weighted_1 = vec4<f32>();
    for (var first = tile.key_begin; first < tile.key_end; first += STAGED) {
        workgroupBarrier();
        for (var i = lane; i < STAGED * HEAD_DIM_VEC4; i += THREADS) {
            let place = i / HEAD_DIM_VEC4;
            let column = i % HEAD_DIM_VEC4;
            var key = vec4<f32>();
            var value = vec4<f32>();
            if (first + place < tile.key_end) {
                let source = key_index(tile, first + place) + column;
                key = k[source];
                value = v[source];
            }
            staged_a[place][column] = key;
            staged_b[place][column] = value;
        }
        workgroupBarrier();
        let count = min(STAGED, tile.key_end - first);
        for (var i = 0u; i < count; i += 4u) {
            products(i);
            let keys = vec4<u32>(first + i) + vec4<u32>(0u, 1u, 2u, 3u);
            let seen_0 = seen_keys(tile, row_0, keys);
            let seen_1 = seen_keys(tile, row_1, keys);
            let p_0 = shares(s[0], lse_0, seen_0);
            let p_1 = shares(s[1], lse_1, seen_1);
            weight_0 += p_0;
            weight_1 += p_1;
            weighted_0 += score_gradients(p_0, dp[0], vec4<f32>(), seen_0);
            weighted_1 += score_gradients(p_1, dp[1], vec4<f32>(), seen_1);
        }
    }
    let ones = vec4<f32>(1.0);
    if (row_0 < tile.row_end) {
        store_mean(tile, row_0, vec2<f32>(dot(weighted_0, ones), dot(weight_0, ones)));
    }
    if (row_1 < tile.row_end) {
        store_mean(tile, row_1, vec2<f32>(dot(weighted_1, ones), dot(weight_1, ones)));
    }
}
