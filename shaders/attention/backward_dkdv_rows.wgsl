// Gradients of the keys and values of one branch, on CPUs: lanes own keys, rows are staged; shared/backward_rows.wgsl says
// how.

@group(0) @binding(5) var<storage, read> terms: array<vec2<f32>>;
@group(0) @binding(6) var<storage, read_write> dk: array<Stored4>;
@group(0) @binding(7) var<storage, read_write> dv: array<Stored4>;

var<workgroup> staged_terms: array<vec2<f32>, STAGED>;

fn load_a(i: u32) -> vec4<f32> {
    return widen(k[i]);
}

fn load_b(i: u32) -> vec4<f32> {
    return widen(v[i]);
}

fn store(i: u32, of_a: vec4<f32>, of_b: vec4<f32>) {
    var result_a = params.scale * of_a;
    var result_b = params.out_scale * of_b;
    if (has_flag(FLAG_MERGE)) {
        result_a += widen(dk[i]);
        result_b += widen(dv[i]);
    }
    dk[i] = narrow(result_a);
    dv[i] = narrow(result_b);
}

fn weigh_rows(tile: Tile, key: u32, own: u32, of_rows: mat2x4<f32>, rows: vec4<u32>) {
    let seen = seeing_rows(tile, key, rows);
    p[own] = shares(s[own], of_rows[0], seen);
    ds[own] = score_gradients(p[own], dp[own], of_rows[1], seen);
}

@compute @workgroup_size(THREADS)
fn backward_dkdv_rows(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let tile = locate_key_tile(workgroup, SIDE);
    let keys = vec4<u32>(tile.key_begin + lane) + vec4<u32>(0u, THREADS, 2u * THREADS, 3u * THREADS);
    find_keys(tile, keys);
    load_own_a_each();
    load_own_b_each();
    var number = 0u;
    for (var first = tile.row_begin; first < tile.row_end; first += STAGED) {
        number++;
        workgroupBarrier();
        for (var i = lane; i < STAGED * HEAD_DIM_VEC4; i += THREADS) {
            let place = i / HEAD_DIM_VEC4;
            let column = i % HEAD_DIM_VEC4;
            var query = vec4<f32>();
            var gradient = vec4<f32>();
            if (first + place < min(tile.row_end, tile.real_rows)) {
                query = widen(q[query_index(tile, first + place) + column]);
            }
            if (first + place < tile.row_end) {
                gradient = widen(dout[output_index(output_place(tile, first + place)) + column]);
            }
            stage_pair(place, column, query, gradient, number);
        }
        if (lane < STAGED) {
            staged_terms[lane] = row_terms(tile, first + lane);
        }
        workgroupBarrier();
        products();
        let rows = vec4<u32>(first) + vec4<u32>(0u, 1u, 2u, 3u);
        let of_rows = transpose(mat4x2<f32>(staged_terms[0], staged_terms[1], staged_terms[2], staged_terms[3]));
        weigh_rows(tile, keys[0], 0u, of_rows, rows);
        weigh_rows(tile, keys[1], 1u, of_rows, rows);
        weigh_rows(tile, keys[2], 2u, of_rows, rows);
        weigh_rows(tile, keys[3], 3u, of_rows, rows);
        add_sums(number, true);
    }
    find_keys(tile, keys);
    store_sums_each();
}
