// Parameters and index arithmetic of one attention dispatch, forward or backward, over heads of `head_dim` elements.
//
// A row is a query of one head in one segment of a branch; a key is a key with its value. Row t and key t of a segment belong to the
// same token: segment * segment_length + offset of the head + dilation_rate * t. A dispatch covers a range of batch items, heads,
// segments, rows and keys.
//
// Keys lie either where their tokens do, or packed: the keys of one branch alone, row after row. Only their addresses differ. Which
// keys exist and which of them a row sees follows from the branch in both cases.

#include "elements.wgsl"
#include "workgroup.wgsl"

const HEAD_DIM_VEC4: u32 = ${head_dim // 4}u;
const FLAG_CAUSAL: u32 = 1u;
const FLAG_ZERO_KEYS: u32 = 2u;
const FLAG_MERGE: u32 = 4u;
const FLAG_PHANTOM_ROWS: u32 = 8u;
const FLAG_DETACHED: u32 = 16u;

struct AttentionParams {
    seq_len: u32, // tokens of a batch item in the tensors of queries and outputs
    valid_len: u32, // of these, the tokens that exist; the rest is padding
    valid_key_len: u32, // tokens of a batch item that have a key; differs from valid_len in cross attention only
    num_heads: u32, // heads of the tensors
    head_begin: u32, // first head of the dispatch
    head_count: u32, // number of heads of the dispatch
    offset_base: u32, // offset of head h, in tokens = offset_base + (h / offset_div) % offset_mod
    offset_div: u32,
    offset_mod: u32,
    segment_length: u32, // in tokens
    dilation_rate: u32, // tokens from row to row
    rows_per_segment: u32, // ceil(segment_length / dilation_rate)
    output_stride: u32, // tokens from the outputs of one segment to those of the next
    segment_begin: u32, // first segment of the dispatch
    segment_count: u32, // number of segments of the dispatch
    row_begin: u32, // rows row_begin .. row_end of each segment are computed
    row_end: u32,
    key_row_begin: u32, // keys key_row_begin .. key_row_end of each segment are seen
    key_row_end: u32,
    flags: u32, // sum of FLAG_ bits
    scale: f32, // softmax scale
    scale_log2e: f32, // softmax scale * log2(e): scores are kept in log2 units
    out_scale: f32, // factor on the branch's output: 1, or 1 / branches where heads are partitioned
    q_token0: u32, // first token that the binding of q shows, counted in the first item of the dispatch
    q_skip: u32, // vec4 of that binding before this token
    out_token0: u32, // the same for the output and its gradient
    out_skip: u32,
    state_skip: u32, // softmax states (a vec2 for each token and head) before that of out_token0, head 0
    row_stats_skip: u32, // row statistics (a vec4 for each token and head) before those of out_token0, head 0
    first_workgroup: u32, // number of the first workgroup of this part of the dispatch
    grid_width: u32, // workgroups along x
    num_workgroups: u32, // of the whole dispatch; the grid may have more
    // Where keys lie in the binding of k and v (and dk, dv), in vec4: see key_index. Numbers below 0 wrap around, as all sums do.
    key_origin: u32, // key 0 of head 0, segment 0, first item of the dispatch, if its offset is 0
    key_item_stride: u32,
    key_segment_stride: u32,
    key_offset_stride: u32, // for each token of a head's offset; 0 in packed keys
    key_row_stride: u32,
}

@group(0) @binding(0) var<uniform> params: AttentionParams;

fn has_flag(flag: u32) -> bool {
    return (params.flags & flag) != 0u;
}

// The work of one workgroup. It depends only on the workgroup number and the parameters, so it is uniform over the workgroup, and
// loops that it bounds may hold barriers.
struct Tile {
    batch: u32,
    segment: u32,
    head: u32,
    offset: u32, // offset of the head, in tokens
    real_rows: u32, // rows [0, real_rows) of the segment have a query
    real_keys: u32, // rows [0, real_keys) of the segment have a key
    written_rows: u32, // rows [0, written_rows) of the segment have an output
    row_begin: u32, // rows [row_begin, row_end) are the tile, or in a tile of keys those that see one of its keys
    row_end: u32,
    key_begin: u32, // keys [key_begin, key_end) are those that a row of the tile sees, or in a tile of keys the tile
    key_end: u32,
    // Tiles of rows: every row of the tile sees keys [key_begin, key_full); only some of its rows see the others.
    key_full: u32,
    // Tiles of keys: rows [row_full, row_end) see every key of the tile; rows before see only some of its keys.
    row_full: u32,
}

// Finds batch item, segment, head and first row (or key, also in row_begin) of a workgroup, when each workgroup takes `size` of the
// rows (or keys) begin .. end.
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
        // Phantom rows count by the token that they are written to: it has to exist. At most rows_per_segment of them, see below.
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

// Finds a tile of rows and the keys that some of them see. With nothing to do, row_end = row_begin and key_end = key_begin.
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
    // A tile before the first key of the dispatch sees none of them; keep begin <= end.
    tile.key_end = max(tile.key_end, tile.key_begin);
    tile.key_full = max(tile.key_full, tile.key_begin);
    return tile;
}

// Finds a tile of keys and the rows that see some of them. With nothing to do, both ranges are empty.
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

// Number of rows of a segment that starts at token `first` and has `length` tokens, of which those from valid_len on do not exist.
fn rows_within(first: u32, length: u32, valid_len: u32, offset: u32) -> u32 {
    let remaining = min(length, valid_len - min(valid_len, first));
    if (remaining <= offset) {
        return 0u;
    }
    return (remaining - offset + params.dilation_rate - 1u) / params.dilation_rate;
}

// Index of row `row` of the segment in q (and dq), in vec4.
fn query_index(tile: Tile, row: u32) -> u32 {
    let token = tile.segment * params.segment_length + tile.offset + params.dilation_rate * row;
    let place = tile.batch * params.seq_len + token - params.q_token0;
    return params.q_skip + (place * params.num_heads + tile.head) * HEAD_DIM_VEC4;
}

// Index of key `row` of the segment in k and v (and dk, dv), in vec4.
fn key_index(tile: Tile, row: u32) -> u32 {
    // Not kept in the tile: software drivers would hold it across barriers, in memory.
    return params.key_origin + tile.batch * params.key_item_stride + tile.segment * params.key_segment_stride
        + tile.offset * params.key_offset_stride + tile.head * HEAD_DIM_VEC4 + row * params.key_row_stride;
}

// Place of row `row` of the segment in the output and in tensors with one element for each token and head: its number among the
// heads of all tokens, counted from head 0 of out_token0.
fn output_place(tile: Tile, row: u32) -> u32 {
    let token = tile.segment * params.output_stride + tile.offset + params.dilation_rate * row;
    return (tile.batch * params.seq_len + token - params.out_token0) * params.num_heads + tile.head;
}

// Index of such a place in the output (and its gradient), in vec4.
fn output_index(place: u32) -> u32 {
    return params.out_skip + place * HEAD_DIM_VEC4;
}

// Number of padding rows of the segment that this row sees as keys of score 0 and value 0.
fn zero_keys(tile: Tile, row: u32) -> u32 {
    if (!has_flag(FLAG_ZERO_KEYS)) {
        return 0u;
    }
    // Padding follows the real keys, so a causal row sees padding only up to its own place.
    let last = select(params.rows_per_segment, row + 1u, has_flag(FLAG_CAUSAL));
    return max(last, tile.real_keys) - tile.real_keys;
}
