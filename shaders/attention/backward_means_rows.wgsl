// For gradients that hold the mixing weights constant: the mean of dout . v over the keys of one branch alone, for each
// row, on CPUs: lanes own rows, keys are staged; shared/backward_rows.wgsl says how.

@group(0) @binding(5) var<storage, read> softmax_lse: array<f32>;
@group(0) @binding(6) var<storage, read_write> terms: array<vec2<f32>>;

fn load_a(i: u32) -> vec4<f32> {
    return widen(q[i]);
}

fn load_b(i: u32) -> vec4<f32> {
    return widen(dout[i]);
}

fn store(i: u32, of_a: vec4<f32>, of_b: vec4<f32>) {
}

@compute @workgroup_size(THREADS)
fn backward_means_rows(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let tile = locate_tile(workgroup, SIDE);
    let rows = vec4<u32>(tile.row_begin + lane) + vec4<u32>(0u, THREADS, 2u * THREADS, 3u * THREADS);
    find_queries(tile, rows);
    load_own_a_each();
    find_outputs(tile, rows);
    load_own_b_each();
    let lse = vec4<f32>(row_lse(tile, rows.x), row_lse(tile, rows.y), row_lse(tile, rows.z), row_lse(tile, rows.w));
    var weight: array<vec4<f32>, 4>;
    var weighted: array<vec4<f32>, 4>;
    for (var first = tile.key_begin; first < tile.key_end; first += STAGED) {
        workgroupBarrier();
        for (var i = lane; i < STAGED * HEAD_DIM_VEC4; i += THREADS) {
            let place = i / HEAD_DIM_VEC4;
            let column = i % HEAD_DIM_VEC4;
            var key = vec4<f32>();
            var value = vec4<f32>();
            if (first + place < tile.key_end) {
                let source = key_index(tile, first + place) + column;
                key = widen(k[source]);
                value = widen(v[source]);
            }
            stage_pair(place, column, key, value, 0u);
        }
        workgroupBarrier();
        products();
        let keys = vec4<u32>(first) + vec4<u32>(0u, 1u, 2u, 3u);
        for (var own = 0u; own < 4u; own++) {
            let seen = seen_keys(tile, rows[own], keys);
            let share = shares(s[own], vec4<f32>(lse[own]), seen);
            weight[own] += share;
            weighted[own] += score_gradients(share, dp[own], vec4<f32>(), seen);
        }
    }
    let ones = vec4<f32>(1.0);
    for (var own = 0u; own < 4u; own++) {
        if (rows[own] < tile.row_end) {
            store_mean(tile, rows[own], vec2<f32>(dot(weighted[own], ones), dot(weight[own], ones)));
        }
    }
}
