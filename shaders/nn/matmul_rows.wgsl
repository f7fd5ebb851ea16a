// c = op(a) op(b), with a bias, an activation and a scaled residual in the same pass, on CPU adapters that turn a load at an
// address all lanes share into one scalar load and a broadcast.
//
// Each lane owns four columns of c in ROWS rows, all lanes of a workgroup the same rows. DEPTH elements of each row of a are
// staged in workgroup memory, where every lane reads the same ones; those of b a lane gathers for its own columns, once for
// all rows. A sum takes DEPTH fma between its load and its store, an element of a feeds four fma, one of b ROWS.
// Functions of a row r have a form `..._each()` that calls them for all rows, written by src/kernel/source.rs: an array
// stays in registers only while all its indices are constants. src/kernel/matmul.rs says why these numbers. Which columns a
// lane owns and how they are stored is in shared/matmul_rows_*.wgsl.
// Prelude: LANES (the adapter's vector width in f32), LANE_GROUPS (groups of lanes beside each other).

const ROWS: u32 = 64u;
const DEPTH: u32 = 5u;
const THREADS: u32 = LANES * LANE_GROUPS;

var<workgroup> left: array<f32, ROWS * DEPTH>;

var<private> sums: array<vec4<f32>, ROWS>;
// DEPTH elements of the lane's columns of b.
var<private> right_0: vec4<f32>;
var<private> right_1: vec4<f32>;
var<private> right_2: vec4<f32>;
var<private> right_3: vec4<f32>;
var<private> right_4: vec4<f32>;
// What storing works with, beside its row.
var<private> first_row: u32;
var<private> first_column: u32; // of the lane, in cells
var<private> place: u32; // of that column in the first row in c
var<private> exists: vec4<bool>; // which of the lane's columns c has

// Rows and columns outside c repeat the last one, which costs less than a test: their sums are not stored. Elements beyond
// the end of the sum are 0 on both sides, for what is there may be NaN.
fn stage(lane: u32, first_k: u32, end: u32) {
    for (var i = lane; i < ROWS * DEPTH; i += THREADS) {
        // Neighbouring lanes take neighbours as stored.
        let row = select(i / DEPTH, i % ROWS, TRANSPOSE_A == 1u);
        let place = select(i % DEPTH, i / ROWS, TRANSPOSE_A == 1u);
        let k = first_k + place;
        let value = load_a(min(first_row + row, params.rows - 1u), min(k, end - 1u));
        left[row * DEPTH + place] = select(0.0, value, k < end);
    }
}

fn right(k: u32, columns: vec4<u32>, end: u32) -> vec4<f32> {
    let last = min(k, end - 1u);
    let values = vec4<f32>(load_b(last, columns.x), load_b(last, columns.y), load_b(last, columns.z),
        load_b(last, columns.w));
    return select(vec4<f32>(), values, k < end);
}

fn add_row(r: u32) {
    var sum = fma(vec4<f32>(left[r * DEPTH]), right_0, sums[r]);
    sum = fma(vec4<f32>(left[r * DEPTH + 1u]), right_1, sum);
    sum = fma(vec4<f32>(left[r * DEPTH + 2u]), right_2, sum);
    sum = fma(vec4<f32>(left[r * DEPTH + 3u]), right_3, sum);
    sums[r] = fma(vec4<f32>(left[r * DEPTH + 4u]), right_4, sum);
}

@compute @workgroup_size(THREADS)
fn matmul_rows(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let number = workgroup_number(workgroup);
    first_row = number / params.tiles_x % params.tiles_y * ROWS;
    let column = number % params.tiles_x * (4u * THREADS) + lane / LANES * (4u * LANES) + lane % LANES * CELL;
    let columns = vec4<u32>(column) + COLUMN_STEP * vec4<u32>(0u, 1u, 2u, 3u);
    let read_columns = min(columns, vec4<u32>(params.columns - 1u));
    let split = number / (params.tiles_x * params.tiles_y);
    let begin = min(params.inner, split * params.split);
    let end = min(params.inner, begin + params.split);
    for (var k = begin; k < end; k += DEPTH) {
        workgroupBarrier();
        stage(lane, k, end);
        workgroupBarrier();
        right_0 = right(k, read_columns, end);
        right_1 = right(k + 1u, read_columns, end);
        right_2 = right(k + 2u, read_columns, end);
        right_3 = right(k + 3u, read_columns, end);
        right_4 = right(k + 4u, read_columns, end);
        add_row_each();
    }
    // Numbers beyond the last tile do nothing.
    if (split * params.split < max(params.inner, 1u)) {
        exists = columns < vec4<u32>(params.columns);
        first_column = column / CELL;
        place = params.c_skip + split * params.split_stride + first_row * params.c_stride + first_column;
        if (has_flag(FLAG_ACCUMULATE)) {
            add_stored_each();
        }
        store_row_each();
        if (ACTIVATION != 0u || has_flag(FLAGS_AFTER)) {
            for (var r = first_row; r < min(params.rows, first_row + ROWS); r++) {
                finish_row(r * params.c_stride + first_column, columns);
            }
        }
    }
}
