// Gradients of the keys and values of one branch, on CPUs: lanes own keys, rows are staged; shared/backward_rows.wgsl says
// how.

@group(0) @binding(5) var<storage, read> terms: array<vec2<f32>>;
@group(0) @binding(6) var<storage, read_write> dk: array<vec4<f32>>;
@group(0) @binding(7) var<storage, read_write> dv: array<vec4<f32>>;

var<workgroup> staged_terms: array<vec2<f32>, 32>;

fn load_a(i: u32) -> vec4<f32> {
    return k[i];
}

fn load_b(i: u32) -> vec4<f32> {
    return v[i];
}

fn store(i: u32, of_a: vec4<f32>, of_b: vec4<f32>) {
    var result_a = params.scale * of_a;
    var result_b = params.out_scale * of_b;
    if (has_flag(FLAG_MERGE)) {
        result_a += dk[i];
        result_b += dv[i];
    }
    dk[i] = result_a;
    dv[i] = result_b;
}

@compute @workgroup_size(THREADS)
fn backward_dkdv_rows(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let tile = locate_key_tile(workgroup, SIDE);
    let key_0 = tile.key_begin + lane;
    let key_1 = key_0 + THREADS;
    if (key_0 < tile.key_end) {
        at = key_index(tile, key_0);
        each_column(LOAD_A);
        each_column(LOAD_B);
    }
    if (key_1 < tile.key_end) {
        at = key_index(tile, key_1);
        each_column(LOAD_A + 1u);
        each_column(LOAD_B + 1u);
    }
    for (var first = tile.row_begin; first < tile.row_end; first += STAGED) {
        workgroupBarrier();
        for (var i = lane; i < STAGED * HEAD_DIM_VEC4; i += THREADS) {
            let place = i / HEAD_DIM_VEC4;
            let column = i % HEAD_DIM_VEC4;
            var query = vec4<f32>();
            var gradient = vec4<f32>();
            if (first + place < min(tile.row_end, tile.real_rows)) {
                query = q[query_index(tile, first + place) + column];
            }
            if (first + place < tile.row_end) {
                gradient = dout[output_index(output_place(tile, first + place)) + column];
            }
            staged_a[place][column] = query;
            staged_b[place][column] = gradient;
        }
        for (var i = lane; i < STAGED; i += THREADS) {
            staged_terms[i] = row_terms(tile, first + i);
        }
        workgroupBarrier();
        let count = min(STAGED, tile.row_end - first);
        for (var i = 0u; i < count; i += 4u) {
            products(i);
            let rows = vec4<u32>(first + i) + vec4<u32>(0u, 1u, 2u, 3u);
            let of_rows = transpose(mat4x2<f32>(staged_terms[i], staged_terms[i + 1u], staged_terms[i + 2u], staged_terms[i + 3u]));
            let seen_0 = seeing_rows(tile, key_0, rows);
            let seen_1 = seeing_rows(tile, key_1, rows);
            p[0] = shares(s[0], of_rows[0], seen_0);
            p[1] = shares(s[1], of_rows[0], seen_1);
            ds[0] = score_gradients(p[0], dp[0], of_rows[1], seen_0);
            ds[1] = score_gradients(p[1], dp[1], of_rows[1], seen_1);
            if (first + i >= tile.row_full && first + i + 4u <= tile.row_end) {
                each_column(SUM_A);
                each_column(SUM_B);
            } else {
                each_column(SUM_A_SEEN);
                each_column(SUM_B_SEEN);
            }
        }
    }
    if (key_0 < tile.key_end) {
        at = key_index(tile, key_0);
        each_column(STORE);
    }
    if (key_1 < tile.key_end) {
        at = key_index(tile, key_1);
        each_column(STORE + 1u);
    }
}
