// A lane's four columns are LANES apart and stored one by one, for neighbouring lanes to take neighbours.

const COLUMN_STEP: u32 = LANES;
// What follows the sums in a loop of its own: in store_row it would be compiled for each row.
const FLAGS_AFTER: u32 = FLAG_BIAS | FLAG_RESIDUAL;

fn store_row(r: u32) {
    if (first_row + r < params.rows) {
        let at = place + r * params.c_stride;
        if (exists.x) { c[at] = sums[r].x; }
        if (exists.y) { c[at + LANES] = sums[r].y; }
        if (exists.z) { c[at + 2u * LANES] = sums[r].z; }
        if (exists.w) { c[at + 3u * LANES] = sums[r].w; }
    }
}

fn add_stored(r: u32) {
    if (first_row + r < params.rows) {
        let at = place + r * params.c_stride;
        if (exists.x) { sums[r].x += c[at]; }
        if (exists.y) { sums[r].y += c[at + LANES]; }
        if (exists.z) { sums[r].z += c[at + 2u * LANES]; }
        if (exists.w) { sums[r].w += c[at + 3u * LANES]; }
    }
}

fn finish_stored(at: u32, column: u32) {
    if (column < params.columns) {
        let index = params.c_skip + at;
        c[index] = finish(c[index], at, column);
    }
}

fn finish_row(at: u32, columns: vec4<u32>) {
    finish_stored(at, columns.x);
    finish_stored(at + LANES, columns.y);
    finish_stored(at + 2u * LANES, columns.z);
    finish_stored(at + 3u * LANES, columns.w);
}
