// Gradients of the keys and values of one branch, on GPUs: each workgroup owns 32 keys and walks over the rows that see them.
//
//   s = k q^T    dp = v dout^T    dv += p dout    ds = p (dp - mean)    dk += scale ds q

@group(0) @binding(5) var<storage, read> terms: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read_write> dk: array<Stored4>;
@group(0) @binding(7) var<storage, read_write> dv: array<Stored4>;

fn store_key(tile: Tile, key: u32, column: u32, of_key: vec4<f32>, of_value: vec4<f32>) {
    if (key < tile.key_end && column < HEAD_DIM_VEC4) {
        let to = key_index(tile, key) + column;
        var result_key = params.scale * of_key;
        var result_value = params.out_scale * of_value;
        if (has_flag(FLAG_MERGE)) {
            result_key += widen(dk[to]);
            result_value += widen(dv[to]);
        }
        dk[to] = narrow(result_key);
        dv[to] = narrow(result_value);
    }
}

fn store_chunk(tile: Tile, thread: Thread, chunk: u32, of_key: mat4x4<f32>, of_value: mat4x4<f32>) {
    let keys = vectors_of(tile.key_begin + thread.group);
    let column = chunk * CHUNK + thread.lane;
    store_key(tile, keys.x, column, of_key[0], of_value[0]);
    store_key(tile, keys.y, column, of_key[1], of_value[1]);
    store_key(tile, keys.z, column, of_key[2], of_value[2]);
    store_key(tile, keys.w, column, of_key[3], of_value[3]);
}

@compute @workgroup_size(64)
fn backward_dkdv_tile(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let tile = locate_key_tile(workgroup, SIDE);
    let thread = Thread(index / 8u, index % 8u);
    let keys = vectors_of(tile.key_begin + thread.group);
    var dk_0: mat4x4<f32>;
    var dk_1: mat4x4<f32>;
    var dk_2: mat4x4<f32>;
    var dk_3: mat4x4<f32>;
    var dk_4: mat4x4<f32>;
    var dk_5: mat4x4<f32>;
    var dk_6: mat4x4<f32>;
    var dk_7: mat4x4<f32>;
    var dv_0: mat4x4<f32>;
    var dv_1: mat4x4<f32>;
    var dv_2: mat4x4<f32>;
    var dv_3: mat4x4<f32>;
    var dv_4: mat4x4<f32>;
    var dv_5: mat4x4<f32>;
    var dv_6: mat4x4<f32>;
    var dv_7: mat4x4<f32>;
    for (var row_tile = tile.row_begin; row_tile < tile.row_end; row_tile += SIDE) {
        let s = products(tile, thread, KEY, tile.key_begin, QUERY, row_tile);
        let dp = products(tile, thread, VALUE, tile.key_begin, DOUT, row_tile);
        let rows = vectors_of(row_tile + thread.lane);
        let of_rows = four_terms(row_terms(tile, rows.x), row_terms(tile, rows.y), row_terms(tile, rows.z), row_terms(tile, rows.w));
        let seen_x = seeing_rows(tile, keys.x, rows);
        let seen_y = seeing_rows(tile, keys.y, rows);
        let seen_z = seeing_rows(tile, keys.z, rows);
        let seen_w = seeing_rows(tile, keys.w, rows);
        let p = mat4x4<f32>(shares(s[0], of_rows.top, of_rows.norm, seen_x), shares(s[1], of_rows.top, of_rows.norm, seen_y), shares(s[2], of_rows.top, of_rows.norm, seen_z), shares(s[3], of_rows.top, of_rows.norm, seen_w));
        keep_block(thread, p);
        let all_seen = row_tile >= tile.row_full && row_tile + SIDE <= tile.row_end;
        dv_0 = add_product(tile, thread, DOUT, row_tile, 0u, all_seen, dv_0);
        if (CHUNKS > 1u) { dv_1 = add_product(tile, thread, DOUT, row_tile, 1u, all_seen, dv_1); }
        if (CHUNKS > 2u) { dv_2 = add_product(tile, thread, DOUT, row_tile, 2u, all_seen, dv_2); }
        if (CHUNKS > 3u) { dv_3 = add_product(tile, thread, DOUT, row_tile, 3u, all_seen, dv_3); }
        if (CHUNKS > 4u) { dv_4 = add_product(tile, thread, DOUT, row_tile, 4u, all_seen, dv_4); }
        if (CHUNKS > 5u) { dv_5 = add_product(tile, thread, DOUT, row_tile, 5u, all_seen, dv_5); }
        if (CHUNKS > 6u) { dv_6 = add_product(tile, thread, DOUT, row_tile, 6u, all_seen, dv_6); }
        if (CHUNKS > 7u) { dv_7 = add_product(tile, thread, DOUT, row_tile, 7u, all_seen, dv_7); }
        keep_block(thread, mat4x4<f32>(
            score_gradients(p[0], dp[0], of_rows.mean, seen_x),
            score_gradients(p[1], dp[1], of_rows.mean, seen_y),
            score_gradients(p[2], dp[2], of_rows.mean, seen_z),
            score_gradients(p[3], dp[3], of_rows.mean, seen_w),
        ));
        dk_0 = add_product(tile, thread, QUERY, row_tile, 0u, all_seen, dk_0);
        if (CHUNKS > 1u) { dk_1 = add_product(tile, thread, QUERY, row_tile, 1u, all_seen, dk_1); }
        if (CHUNKS > 2u) { dk_2 = add_product(tile, thread, QUERY, row_tile, 2u, all_seen, dk_2); }
        if (CHUNKS > 3u) { dk_3 = add_product(tile, thread, QUERY, row_tile, 3u, all_seen, dk_3); }
        if (CHUNKS > 4u) { dk_4 = add_product(tile, thread, QUERY, row_tile, 4u, all_seen, dk_4); }
        if (CHUNKS > 5u) { dk_5 = add_product(tile, thread, QUERY, row_tile, 5u, all_seen, dk_5); }
        if (CHUNKS > 6u) { dk_6 = add_product(tile, thread, QUERY, row_tile, 6u, all_seen, dk_6); }
        if (CHUNKS > 7u) { dk_7 = add_product(tile, thread, QUERY, row_tile, 7u, all_seen, dk_7); }
    }
    store_chunk(tile, thread, 0u, dk_0, dv_0);
    if (CHUNKS > 1u) { store_chunk(tile, thread, 1u, dk_1, dv_1); }
    if (CHUNKS > 2u) { store_chunk(tile, thread, 2u, dk_2, dv_2); }
    if (CHUNKS > 3u) { store_chunk(tile, thread, 3u, dk_3, dv_3); }
    if (CHUNKS > 4u) { store_chunk(tile, thread, 4u, dk_4, dv_4); }
    if (CHUNKS > 5u) { store_chunk(tile, thread, 5u, dk_5, dv_5); }
    if (CHUNKS > 6u) { store_chunk(tile, thread, 6u, dk_6, dv_6); }
    if (CHUNKS > 7u) { store_chunk(tile, thread, 7u, dk_7, dv_7); }
}
