// Gradient of the queries of one branch, on CPUs: lanes own rows, keys are staged; shared/backward_rows.wgsl says how.

@group(0) @binding(5) var<storage, read> terms: array<vec2<f32>>;
@group(0) @binding(6) var<storage, read_write> dq: array<Stored4>;

fn load_a(i: u32) -> vec4<f32> {
    return widen(q[i]);
}

fn load_b(i: u32) -> vec4<f32> {
    return widen(dout[i]);
}

fn store(i: u32, of_a: vec4<f32>, of_b: vec4<f32>) {
    var result = params.scale * of_a;
    if (has_flag(FLAG_MERGE)) {
        result += widen(dq[i]);
    }
    dq[i] = narrow(result);
}

fn weigh_keys(tile: Tile, row: u32, own: u32, of_row: vec2<f32>, keys: vec4<u32>) {
    let seen = seen_keys(tile, row, keys);
    let share = shares(s[own], vec4<f32>(of_row.x), seen);
    ds[own] = score_gradients(share, dp[own], vec4<f32>(of_row.y), seen);
}

@compute @workgroup_size(THREADS)
fn backward_dq_rows(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let tile = locate_tile(workgroup, SIDE);
    let rows = vec4<u32>(tile.row_begin + lane) + vec4<u32>(0u, THREADS, 2u * THREADS, 3u * THREADS);
    find_queries(tile, rows);
    load_own_a_each();
    find_outputs(tile, rows);
    load_own_b_each();
    let terms_0 = row_terms(tile, rows[0]);
    let terms_1 = row_terms(tile, rows[1]);
    let terms_2 = row_terms(tile, rows[2]);
    let terms_3 = row_terms(tile, rows[3]);
    var number = 0u;
    for (var first = tile.key_begin; first < tile.key_end; first += STAGED) {
        number++;
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
            stage_pair(place, column, key, value, number);
        }
        workgroupBarrier();
        products();
        let keys = vec4<u32>(first) + vec4<u32>(0u, 1u, 2u, 3u);
        weigh_keys(tile, rows[0], 0u, terms_0, keys);
        weigh_keys(tile, rows[1], 1u, terms_1, keys);
        weigh_keys(tile, rows[2], 2u, terms_2, keys);
        weigh_keys(tile, rows[3], 3u, terms_3, keys);
        add_sums(number, false);
    }
    find_queries(tile, rows);
    store_sums_each();
}
