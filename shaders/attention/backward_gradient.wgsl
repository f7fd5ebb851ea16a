// A gradient of a window of one branch as a product of matrices, on CPUs: dq = ds k, dk = ds^T q or dv = p^T dout, with the
// weights that attention/backward_weights.wgsl wrote. A workgroup takes SIDE rows (of dk and dv: keys) and CELLS cells of
// columns; shared/product_broadcast.wgsl multiplies.
// Prelude: GRADIENT, HEAD_DIM_VEC4, DEPTH, SIDE.

const OF_QUERIES: u32 = 0u;
const OF_KEYS: u32 = 1u;
const OF_VALUES: u32 = 2u;

@group(0) @binding(1) var<storage, read> weights: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> vectors: array<Stored4>;
@group(0) @binding(3) var<storage, read_write> gradient: array<Stored4>;

var<private> tile: Tile;
var<private> matrix: u32; // where the weights begin
var<private> stride: u32; // of the weights
var<private> first_row: u32; // of the lane, in the window
var<private> num_rows: u32; // from there on
var<private> first_cell: u32; // of all lanes
var<private> place: u32; // of that cell in the lane's first row

fn own_index(row: u32) -> u32 {
    if (GRADIENT == OF_QUERIES) {
        return query_index(tile, tile.row_begin + row);
    }
    return key_index(tile, tile.key_begin + row);
}

fn vector_index(number: u32) -> u32 {
    switch GRADIENT {
        case OF_QUERIES: { return key_index(tile, tile.key_begin + number); }
        case OF_KEYS: { return query_index(tile, tile.row_begin + number); }
        default: { return output_index(output_place(tile, tile.row_begin + number)); }
    }
}

// From row to row, in fours, of all tensors.
fn row_stride() -> u32 {
    return params.dilation_rate * params.num_heads * HEAD_DIM_VEC4;
}

fn find_left(four: u32) {
    if (TRANSPOSE_A == 1u) {
        left_at[four] = vec4<u32>(matrix + first_row / 4u + four) + vec4<u32>(0u, 1u, 2u, 3u) * stride;
    } else {
        left_at[four] = vec4<u32>(matrix) + (vec4<u32>(first_row + 4u * four) + vec4<u32>(0u, 1u, 2u, 3u)) * stride;
    }
}

fn load_left(four: u32) {
    let at = left_at[four] + left_offset;
    keep_left(four, mat4x4<f32>(weights[at.x], weights[at.y], weights[at.z], weights[at.w]));
}

fn find_right(pair: u32) {
    right_at[pair] = min(first_cell + 2u * pair + lane / 4u, HEAD_DIM_VEC4 - 1u);
}

fn add_pair(pair: u32) {
    let own = widen(vectors[right_at[pair] + right_offset]);
    // A weight of 0 keeps out what is not finite: the weights of those who see it are NaN.
    add_columns(pair, select(vec4<f32>(), own, is_finite(own)));
}

// Four vectors, weighed. Those beyond the last one have weights of 0.
fn add_four(vectors_at: u32, number: u32, last: u32) {
    left_offset = number / 4u * select(1u, 4u * stride, TRANSPOSE_A == 1u);
    right_offset = vectors_at + min(number + lane % 4u, last) * row_stride();
    load_left_each();
    add_pair_each();
}

fn exists(i: u32) -> bool {
    return i / CELLS < num_rows && first_cell + i % CELLS < HEAD_DIM_VEC4;
}

fn load_sum(i: u32) {
    if (exists(i)) {
        sums[i] = widen(gradient[place + i / CELLS * row_stride() + i % CELLS]);
    }
}

fn store_sum(i: u32) {
    if (exists(i)) {
        gradient[place + i / CELLS * row_stride() + i % CELLS] = narrow(sums[i]);
    }
}

@compute @workgroup_size(LANES)
fn backward_gradient(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(subgroup_invocation_id) subgroup_lane: u32) {
    lane = subgroup_lane;
    let column_tiles = (HEAD_DIM_VEC4 + CELLS - 1u) / CELLS;
    let row_tiles = tiles_in(select(window_keys(), window_rows(), GRADIENT == OF_QUERIES));
    tile = locate_part(workgroup, row_tiles * column_tiles);
    let tile_row = part / column_tiles * SIDE;
    first_row = tile_row + ROWS * lane;
    first_cell = part % column_tiles * CELLS;

    let queries_end = max(tile.row_begin, min(tile.row_end, tile.real_rows));
    var own_count = tile.key_end - tile.key_begin;
    var count = tile.row_end - tile.row_begin;
    var begin = 0u;
    if (GRADIENT == OF_QUERIES) {
        own_count = queries_end - tile.row_begin;
        count = tile.key_end - tile.key_begin;
    } else if (GRADIENT == OF_KEYS) {
        count = queries_end - tile.row_begin;
    }
    let last = max(count, 1u) - 1u;
    if (has_flag(FLAG_CAUSAL)) {
        if (GRADIENT == OF_QUERIES) {
            let end = tile.row_begin + tile_row + SIDE;
            count = min(count, max(end, tile.key_begin) - tile.key_begin);
        } else {
            let first = tile.key_begin + tile_row;
            begin = (max(first, tile.row_begin) - tile.row_begin) / DEPTH * DEPTH;
        }
    }
    num_rows = max(own_count, first_row) - first_row;
    place = own_index(first_row) + first_cell;
    if (has_flag(FLAG_MERGE)) {
        load_sum_each();
    }

    stride = weights_stride();
    matrix = unit * 2u * weights_size() + select(0u, weights_size(), GRADIENT == OF_VALUES);
    find_left_each();
    find_right_each();
    let vectors_at = vector_index(0u);
    for (var number = begin; number < count; number += DEPTH) {
        add_four(vectors_at, number, last);
        if (DEPTH > 4u) {
            add_four(vectors_at, number + 4u, last);
        }
    }
    store_sum_each();
}
