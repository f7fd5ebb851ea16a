// Gradient of the queries of one branch, on CPUs: lanes own rows, keys are staged; shared/backward_rows.wgsl says how.

@group(0) @binding(5) var<storage, read> terms: array<vec2<f32>>;
@group(0) @binding(6) var<storage, read_write> dq: array<vec4<f32>>;

fn load_a(i: u32) -> vec4<f32> {
    return q[i];
}

fn load_b(i: u32) -> vec4<f32> {
    return dout[i];
}

fn store(i: u32, of_a: vec4<f32>, of_b: vec4<f32>) {
    var result = params.scale * of_a;
    if (has_flag(FLAG_MERGE)) {
        result += dq[i];
    }
    dq[i] = result;
}

@compute @workgroup_size(THREADS)
fn backward_dq_rows(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
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
    let terms_0 = row_terms(tile, row_0);
    let terms_1 = row_terms(tile, row_1);
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
            ds[0] = score_gradients(shares(s[0], vec4<f32>(terms_0.x), seen_0), dp[0], vec4<f32>(terms_0.y), seen_0);
            ds[1] = score_gradients(shares(s[1], vec4<f32>(terms_1.x), seen_1), dp[1], vec4<f32>(terms_1.y), seen_1);
            if (first + i + 4u <= tile.key_full) {
                each_column(SUM_A);
            } else {
                each_column(SUM_A_SEEN);
            }
        }
    }
    if (row_0 < query_end) {
        at = query_index(tile, row_0);
        each_column(STORE);
    }
    if (row_1 < query_end) {
        at = query_index(tile, row_1);
        each_column(STORE + 1u);
    }
}
