// Layout of the weights of a window in memory, between the kernel that writes them and those that multiply them: for each batch
// item, segment and head of a dispatch two matrices, first ds, then p, with a row for each row of the window and a column for each
// key. Both are padded to whole tiles of SIDE x SIDE. Tiles are written whole, so that readers need not check which rows and keys
// exist. The including kernel defines SIDE.

var<private> part: u32; // number of this workgroup among those of its item, segment and head
var<private> unit: u32; // number of this item, segment and head in the dispatch

fn tiles_in(length: u32) -> u32 {
    return (length + SIDE - 1u) / SIDE;
}

fn window_rows() -> u32 {
    return params.row_end - params.row_begin;
}

fn window_keys() -> u32 {
    return params.key_row_end - params.key_row_begin;
}

// Stride of a row in vec4. It is odd, so that rows do not compete for the same sets of the CPU's cache.
fn weights_stride() -> u32 {
    return tiles_in(window_keys()) * (SIDE / 4u) + 1u;
}

// Number of vec4 in one matrix (ds or p).
fn weights_size() -> u32 {
    return tiles_in(window_rows()) * SIDE * weights_stride();
}

// Finds item, segment and head of a workgroup, when each of them has `parts` workgroups. The tile has the rows and keys of the
// window that exist.
fn locate_part(workgroup: vec3<u32>, parts: u32) -> Tile {
    var tile = locate_segment(workgroup, 0u, parts, 1u);
    part = tile.row_begin;
    unit = workgroup_number(workgroup) / parts;
    tile.row_begin = params.row_begin;
    tile.row_end = max(tile.row_begin, min(params.row_end, tile.written_rows));
    tile.key_begin = params.key_row_begin;
    tile.key_end = max(tile.key_begin, min(params.key_row_end, tile.real_keys));
    return tile;
}
