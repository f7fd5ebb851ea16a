// A lane's four columns are neighbours and stored at once.

const COLUMN_STEP: u32 = 1u;
// What follows the sums in a loop of its own. The bias is added before the sum is rounded.
const FLAGS_AFTER: u32 = FLAG_RESIDUAL;

fn store_row(r: u32) {
    if (exists.x && first_row + r < params.rows) {
        c[place + r * params.c_stride] = narrow(biased(sums[r], first_column));
    }
}

fn add_stored(r: u32) {
    if (exists.x && first_row + r < params.rows) {
        sums[r] += widen(c[place + r * params.c_stride]);
    }
}

fn finish_row(at: u32, columns: vec4<u32>) {
    if (columns.x < params.columns) {
        let index = params.c_skip + at;
        c[index] = narrow(activated(widen(c[index]), at));
    }
}
