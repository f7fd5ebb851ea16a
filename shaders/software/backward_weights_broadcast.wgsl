// The matrices ds and p of a window of one branch, a row for each row and a column for each key, on CPUs of the `broadcast` tier.
// The gradients are matrix products with them (backward_gradient_broadcast.wgsl). A workgroup, one subgroup of eight lanes,
// computes SIDE rows and SIDE keys.

#include "backward_scores.wgsl"
#include "backward_window.wgsl"

@group(0) @binding(5) var<storage, read> row_stats: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read_write> weights: array<vec4<f32>>;

var<private> of_row: array<RowStats, 8>; // row statistics of the lane's rows
var<private> place: u32; // place of the lane's first row and the tile's first key in ds, in vec4
var<private> stride: u32; // vec4 from row to row
var<private> size: u32; // vec4 of a matrix

fn find_row_stats(r: u32) {
    of_row[r] = load_row_stats(tile, first_row + r);
}

fn write_weights(i: u32) {
    let r = i / VEC4S;
    let seen = seen_of(i);
    let share = of_row[r].norm * weights_of_pairs(i, of_row[r].top, seen);
    let has_query = first_row + r < tile.real_rows;
    let at = place + r * stride + i % VEC4S;
    weights[at] = select(vec4<f32>(), params.scale * score_gradients(share, sums[i], vec4<f32>(of_row[r].mean), seen), has_query);
    weights[at + size] = params.out_scale * share;
}

@compute @workgroup_size(LANES)
fn backward_weights_broadcast(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(subgroup_invocation_id) subgroup_lane: u32) {
    lane = subgroup_lane;
    let key_tiles = tiles_in(window_keys());
    tile = locate_part(workgroup, tiles_in(window_rows()) * key_tiles);
    let tile_row = part / key_tiles * SIDE;
    let tile_key = part % key_tiles * SIDE;
    stride = weights_stride();
    size = weights_size();
    place = 2u * unit * size + (tile_row + ROWS * lane) * stride + tile_key / 4u;
    first_row = tile.row_begin + tile_row + ROWS * lane;
    first_key = tile.key_begin + tile_key;
    let seen = select(tile.key_end, min(tile.key_end, tile.row_begin + tile_row + SIDE), has_flag(FLAG_CAUSAL));
    // Under the causal mask, tiles after the diagonal are all 0. Those near it are written, too, because tiles of the gradient
    // kernels reach over the diagonal and read them.
    if (workgroup_number(workgroup) < params.num_workgroups && (!has_flag(FLAG_CAUSAL) || first_key < seen + 2u * SIDE)) {
#for i in range(rows)
        find_seen(${i}u);
#endfor
        if (first_key < seen && tile.row_begin + tile_row < tile.row_end) {
#for i in range(rows // 4)
            find_rows(${i}u);
#endfor
#for i in range(rows)
            find_row_stats(${i}u);
#endfor
            score_keys();
        }
#for i in range(rows * vec4s)
        write_weights(${i}u);
#endfor
    }
}
