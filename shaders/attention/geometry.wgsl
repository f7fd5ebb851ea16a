// Parameters and index arithmetic of one attention dispatch, forward or backward, over heads of `head_dim` elements.

#include "elements.wgsl"
#include "workgroup.wgsl"

const HEAD_DIM_VEC4: u32 = ${head_dim // 4}u;
const FLAG_CAUSAL: u32 = 1u;
const FLAG_ZERO_KEYS: u32 = 2u;
const FLAG_MERGE: u32 = 4u;
const FLAG_PHANTOM_ROWS: u32 = 8u;
const FLAG_DETACHED: u32 = 16u;

struct AttentionParams {
    seq_len: u32, // tokens per batch item in queries and outputs
    valid_len: u32, // tokens of an item that exist
    key_len: u32, // the same of keys and values: other numbers in cross attention only
    valid_key_len: u32,
    num_heads: u32,
    head_begin: u32,
    head_count: u32,
    offset_base: u32, // offset of head h = offset_base + (h / offset_div) % offset_mod
    offset_div: u32,
    offset_mod: u32,
    segment_length: u32,
    dilation_rate: u32,
    rows_per_segment: u32, // ceil(segment_length / dilation_rate)
    output_stride: u32, // tokens between the outputs of two segments
    segment_begin: u32,
    segment_count: u32,
    row_begin: u32,
    row_end: u32,
    key_row_begin: u32,
    key_row_end: u32,
    flags: u32,
    scale: f32, // softmax scale
    scale_log2e: f32, // softmax scale * log2(e): the forward keeps scores in log2 units
    out_scale: f32,
    q_token0: u32, // first token and first element of the window each binding shows
    q_skip: u32,
    kv_token0: u32,
    kv_skip: u32,
    out_token0: u32,
    out_skip: u32,
    state_skip: u32,
    row_stats_skip: u32,
    first_workgroup: u32,
    grid_width: u32,
    num_workgroups: u32,
}

@group(0) @binding(0) var<uniform> params: AttentionParams;

fn has_flag(flag: u32) -> bool {
    return (params.flags & flag) != 0u;
}

// What one workgroup does. All of it depends on the workgroup number and the uniform alone, so loops bounded by it may
// hold barriers.
struct Tile {
    batch: u32,
    segment: u32,
    head: u32,
    offset: u32, // of the head, in tokens
    real_rows: u32, // rows [0, real_rows) of the segment have a query
    real_keys: u32, // rows [0, real_keys) of the segment have a key
    written_rows: u32, // rows [0, written_rows) of the segment have an output
    row_begin: u32,
    row_end: u32,
    key_begin: u32,
    key_end: u32,
    // Tiles of rows: keys [key_begin, key_full) are seen by every row of the tile, the others by some of its rows only.
    key_full: u32,
    // Tiles of keys: rows [row_full, row_end) see every key of the tile, those before some of its keys only.
    row_full: u32,
}

// Batch item, segment and head of a workgroup when it takes `size` of the rows (or keys) begin .. end, and the first of
// them, in row_begin.
fn locate_segment(workgroup: vec3<u32>, begin: u32, end: u32, size: u32) -> Tile {
    var tile: Tile;
    let number = workgroup_number(workgroup);
    let tiles = (end - begin + size - 1u) / size;
    var rest = number / tiles;
    tile.row_begin = begin + (number % tiles) * size;
    tile.head = params.head_begin + rest % params.head_count;
    rest = rest / params.head_count;
    tile.segment = params.segment_begin + rest % params.segment_count;
    tile.batch = rest / params.segment_count;
    tile.offset = params.offset_base + (tile.head / params.offset_div) % params.offset_mod;
    let first = tile.segment * params.segment_length;
    tile.real_rows = rows_within(first, params.segment_length, params.valid_len, tile.offset);
    tile.real_keys = rows_within(first, params.segment_length, params.valid_key_len, tile.offset);
    tile.written_rows = tile.real_rows;
    if (has_flag(FLAG_PHANTOM_ROWS)) {
        // Rows are counted where they are written: up to rows_per_segment, as long as the output token exists.
        tile.written_rows = rows_within(tile.segment * params.output_stride, params.valid_len, params.valid_len, tile.offset);
    }
    tile.written_rows = min(tile.written_rows, params.rows_per_segment);
    if (number >= params.num_workgroups) {
        tile.real_rows = 0u;
        tile.real_keys = 0u;
        tile.written_rows = 0u;
    }
    return tile;
}

// A tile of query rows: with nothing to do, row_end = row_begin and key_end = key_begin.
fn locate_tile(workgroup: vec3<u32>, rows_per_workgroup: u32) -> Tile {
    var tile = locate_segment(workgroup, params.row_begin, params.row_end, rows_per_workgroup);
    tile.row_end = min(min(params.row_end, tile.written_rows), tile.row_begin + rows_per_workgroup);
    tile.key_begin = params.key_row_begin;
    tile.key_end = min(params.key_row_end, tile.real_keys);
    if (tile.row_end <= tile.row_begin) {
        tile.row_end = tile.row_begin;
        tile.key_end = tile.key_begin;
    }
    tile.key_full = tile.key_end;
    if (has_flag(FLAG_CAUSAL)) {
        tile.key_end = min(tile.key_end, tile.row_end);
        tile.key_full = min(tile.key_end, tile.row_begin + 1u);
    }
    // A tile before the key window sees nothing; keep the ranges ordered.
    tile.key_end = max(tile.key_end, tile.key_begin);
    tile.key_full = max(tile.key_full, tile.key_begin);
    return tile;
}

// A tile of keys and the rows that see some of them: with nothing to do, both ranges are empty.
fn locate_key_tile(workgroup: vec3<u32>, keys_per_workgroup: u32) -> Tile {
    var tile = locate_segment(workgroup, params.key_row_begin, params.key_row_end, keys_per_workgroup);
    tile.key_begin = tile.row_begin;
    tile.key_end = max(tile.key_begin, min(min(params.key_row_end, tile.real_keys), tile.key_begin + keys_per_workgroup));
    tile.row_begin = params.row_begin;
    tile.row_end = min(params.row_end, tile.written_rows);
    if (tile.key_end == tile.key_begin) {
        tile.row_end = 0u;
    }
    tile.row_full = tile.row_begin;
    if (has_flag(FLAG_CAUSAL)) {
        tile.row_begin = max(tile.row_begin, tile.key_begin);
        tile.row_full = max(tile.row_begin, max(tile.key_end, 1u) - 1u);
    }
    tile.row_end = max(tile.row_end, tile.row_begin);
    return tile;
}

// Rows offset, offset + r, ... below `length` whose token, counted from `first`, is below valid_len.
fn rows_within(first: u32, length: u32, valid_len: u32, offset: u32) -> u32 {
    let remaining = min(length, valid_len - min(valid_len, first));
    if (remaining <= offset) {
        return 0u;
    }
    return (remaining - offset + params.dilation_rate - 1u) / params.dilation_rate;
}

// Element index of row t of the tile in q, and in k and v: vec4 units.
fn query_index(tile: Tile, row: u32) -> u32 {
    let token = tile.segment * params.segment_length + tile.offset + params.dilation_rate * row;
    let place = tile.batch * params.seq_len + token - params.q_token0;
    return params.q_skip + (place * params.num_heads + tile.head) * HEAD_DIM_VEC4;
}

fn key_index(tile: Tile, row: u32) -> u32 {
    let token = tile.segment * params.segment_length + tile.offset + params.dilation_rate * row;
    let place = tile.batch * params.key_len + token - params.kv_token0;
    return params.kv_skip + (place * params.num_heads + tile.head) * HEAD_DIM_VEC4;
}

// Where row t is written: (item, token, head) counted in heads from the window's first token.
fn output_place(tile: Tile, row: u32) -> u32 {
    let token = tile.segment * params.output_stride + tile.offset + params.dilation_rate * row;
    return (tile.batch * params.seq_len + token - params.out_token0) * params.num_heads + tile.head;
}

fn output_index(place: u32) -> u32 {
    return params.out_skip + place * HEAD_DIM_VEC4;
}

// Rows of the segment that are no keys but count as keys of score 0 and value 0, as far as this row sees them.
fn zero_keys(tile: Tile, row: u32) -> u32 {
    if (!has_flag(FLAG_ZERO_KEYS)) {
        return 0u;
    }
    // The padding follows the real keys, so a causal row sees the part of it up to its own place.
    let last = select(params.rows_per_segment, row + 1u, has_flag(FLAG_CAUSAL));
    return max(last, tile.real_keys) - tile.real_keys;
}
