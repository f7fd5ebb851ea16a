// Gradients of the keys and values of one branch, on GPUs: a workgroup owns 32 keys and walks over the rows that see them in tiles
// of 32, as backward_tile.wgsl says.
//
//   s = k q^T    dp = v dout^T    dv += p dout    ds = p (dp - mean)    dk += scale ds q
//
// p is the weight's share of the row's softmax, mean the row's mean of dout . v.

#include "backward_tile.wgsl"
#set chunks = (head_dim + 31) // 32

@group(0) @binding(5) var<storage, read> row_stats: array<vec4<f32>>;
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
#for chunk in range(chunks)
    var dk_${chunk}: mat4x4<f32>;
#endfor
#for chunk in range(chunks)
    var dv_${chunk}: mat4x4<f32>;
#endfor
    for (var row_tile = tile.row_begin; row_tile < tile.row_end; row_tile += SIDE) {
        let s = products(tile, thread, KEY, tile.key_begin, QUERY, row_tile);
        let dp = products(tile, thread, VALUE, tile.key_begin, DOUT, row_tile);
        let rows = vectors_of(row_tile + thread.lane);
        let of_rows = row_stats4(load_row_stats(tile, rows.x), load_row_stats(tile, rows.y), load_row_stats(tile, rows.z), load_row_stats(tile, rows.w));
        let seen_x = seeing_rows(tile, keys.x, rows);
        let seen_y = seeing_rows(tile, keys.y, rows);
        let seen_z = seeing_rows(tile, keys.z, rows);
        let seen_w = seeing_rows(tile, keys.w, rows);
        let p = mat4x4<f32>(shares(s[0], of_rows.top, of_rows.norm, seen_x), shares(s[1], of_rows.top, of_rows.norm, seen_y), shares(s[2], of_rows.top, of_rows.norm, seen_z), shares(s[3], of_rows.top, of_rows.norm, seen_w));
        keep_block(thread, p);
        let all_seen = row_tile >= tile.row_full && row_tile + SIDE <= tile.row_end;
#for i in range(chunks)
        dv_${i} = add_product(tile, thread, DOUT, row_tile, ${i}u, all_seen, dv_${i});
#endfor
        keep_block(thread, mat4x4<f32>(
            score_gradients(p[0], dp[0], of_rows.mean, seen_x),
            score_gradients(p[1], dp[1], of_rows.mean, seen_y),
            score_gradients(p[2], dp[2], of_rows.mean, seen_z),
            score_gradients(p[3], dp[3], of_rows.mean, seen_w),
        ));
#for i in range(chunks)
        dk_${i} = add_product(tile, thread, QUERY, row_tile, ${i}u, all_seen, dk_${i});
#endfor
    }
#for i in range(chunks)
    store_chunk(tile, thread, ${i}u, dk_${i}, dv_${i});
#endfor
}
