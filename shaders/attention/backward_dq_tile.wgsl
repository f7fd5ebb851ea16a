// Gradient of the queries of one branch, on GPUs: a workgroup owns 32 rows and walks over their keys in tiles of 32, as
// backward_tile.wgsl says.
//
//   s = q k^T    dp = dout v^T    ds = p (dp - mean)    dq += scale ds k
//
// p is the weight's share of the row's softmax, mean the row's mean of dout . v.

#include "backward_tile.wgsl"
#set chunks = (head_dim + 31) // 32

@group(0) @binding(5) var<storage, read> row_stats: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read_write> dq: array<Stored4>;

fn store_row(tile: Tile, row: u32, column: u32, value: vec4<f32>) {
    if (row < min(tile.row_end, tile.real_rows) && column < HEAD_DIM_VEC4) {
        let to = query_index(tile, row) + column;
        var result = params.scale * value;
        if (has_flag(FLAG_MERGE)) {
            result += widen(dq[to]);
        }
        dq[to] = narrow(result);
    }
}

fn store_chunk(tile: Tile, thread: Thread, chunk: u32, value: mat4x4<f32>) {
    let rows = vectors_of(tile.row_begin + thread.group);
    let column = chunk * CHUNK + thread.lane;
    store_row(tile, rows.x, column, value[0]);
    store_row(tile, rows.y, column, value[1]);
    store_row(tile, rows.z, column, value[2]);
    store_row(tile, rows.w, column, value[3]);
}

@compute @workgroup_size(64)
fn backward_dq_tile(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let tile = locate_tile(workgroup, SIDE);
    let thread = Thread(index / 8u, index % 8u);
    let rows = vectors_of(tile.row_begin + thread.group);
    let stats_x = load_row_stats(tile, rows.x);
    let stats_y = load_row_stats(tile, rows.y);
    let stats_z = load_row_stats(tile, rows.z);
    let stats_w = load_row_stats(tile, rows.w);
#for chunk in range(chunks)
    var dq_${chunk}: mat4x4<f32>;
#endfor
    for (var key_tile = tile.key_begin; key_tile < tile.key_end; key_tile += SIDE) {
        let s = products(tile, thread, QUERY, tile.row_begin, KEY, key_tile);
        let dp = products(tile, thread, DOUT, tile.row_begin, VALUE, key_tile);
        let keys = vectors_of(key_tile + thread.lane);
        keep_block(thread, mat4x4<f32>(
            row_gradients(tile, rows.x, keys, s[0], dp[0], stats_x),
            row_gradients(tile, rows.y, keys, s[1], dp[1], stats_y),
            row_gradients(tile, rows.z, keys, s[2], dp[2], stats_z),
            row_gradients(tile, rows.w, keys, s[3], dp[3], stats_w),
        ));
        let all_seen = key_tile + SIDE <= tile.key_full;
#for i in range(chunks)
        dq_${i} = add_product(tile, thread, KEY, key_tile, ${i}u, all_seen, dq_${i});
#endfor
    }
#for i in range(chunks)
    store_chunk(tile, thread, ${i}u, dq_${i});
#endfor
}

fn row_gradients(tile: Tile, row: u32, keys: vec4<u32>, s: vec4<f32>, dp: vec4<f32>, of_row: RowStats) -> vec4<f32> {
    let seen = seen_keys(tile, row, keys);
    return score_gradients(shares(s, vec4<f32>(of_row.top), vec4<f32>(of_row.norm), seen), dp, vec4<f32>(of_row.mean), seen);
}
