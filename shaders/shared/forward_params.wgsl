// Parameters, bindings and index arithmetic of one forward dispatch. The host fills `ForwardParams` (30 words, same
// order in Rust); every kernel in attention/ is assembled as prelude + shared fragments + kernel.

const FLAG_CAUSAL: u32 = 1u;
const FLAG_ZERO_KEYS: u32 = 2u;
const FLAG_MERGE: u32 = 4u;
const FLAG_PHANTOM_ROWS: u32 = 8u;

struct ForwardParams {
    seq_len: u32, // tokens per batch item in the tensors
    valid_len: u32, // tokens of an item that exist
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
    scale_log2e: f32, // softmax scale * log2(e): scores are kept in log2 units
    out_scale: f32,
    q_token0: u32, // first token and first element of the window each binding shows
    q_skip: u32,
    kv_token0: u32,
    kv_skip: u32,
    out_token0: u32,
    out_skip: u32,
    lse_skip: u32,
    grid_width: u32,
    num_workgroups: u32,
}

@group(0) @binding(0) var<uniform> params: ForwardParams;
@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> k: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> v: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> out: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> softmax_lse: array<f32>;

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
    real_rows: u32, // rows [0, real_rows) of the segment have a token
    row_begin: u32, // first query row of the tile
    row_end: u32, // one past the last query row to compute; = row_begin when the tile has nothing to do
    key_begin: u32,
    key_full: u32, // keys [key_begin, key_full) are seen by every row of the tile
    key_end: u32, // keys [key_full, key_end) are seen by some of its rows only
}

fn locate_tile(workgroup: vec3<u32>, rows_per_workgroup: u32) -> Tile {
    var tile: Tile;
    let number = workgroup.x + workgroup.y * params.grid_width;
    let tiles = (params.row_end - params.row_begin + rows_per_workgroup - 1u) / rows_per_workgroup;
    var rest = number / tiles;
    tile.row_begin = params.row_begin + (number % tiles) * rows_per_workgroup;
    tile.head = params.head_begin + rest % params.head_count;
    rest = rest / params.head_count;
    tile.segment = params.segment_begin + rest % params.segment_count;
    tile.batch = rest / params.segment_count;
    tile.offset = params.offset_base + (tile.head / params.offset_div) % params.offset_mod;
    tile.real_rows = rows_within(tile.segment * params.segment_length, params.segment_length, tile.offset);

    var rows = tile.real_rows;
    if (has_flag(FLAG_PHANTOM_ROWS)) {
        // Rows are counted where they are written: up to rows_per_segment, as long as the output token exists.
        rows = rows_within(tile.segment * params.output_stride, params.valid_len, tile.offset);
    }
    rows = min(rows, params.rows_per_segment);
    tile.row_end = min(min(params.row_end, rows), tile.row_begin + rows_per_workgroup);
    tile.key_begin = params.key_row_begin;
    tile.key_end = min(params.key_row_end, tile.real_rows);
    if (number >= params.num_workgroups || tile.row_end <= tile.row_begin) {
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

// Rows offset, offset + r, ... below `length` whose token, counted from `first`, is below valid_len.
fn rows_within(first: u32, length: u32, offset: u32) -> u32 {
    let remaining = min(length, params.valid_len - min(params.valid_len, first));
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
    let place = tile.batch * params.seq_len + token - params.kv_token0;
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
