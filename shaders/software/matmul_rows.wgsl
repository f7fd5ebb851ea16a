// c = op(a) op(b) with bias, activation and scaled residual in the same pass, on CPUs of the `rows` tier, whose driver turns a load
// at an address shared by all lanes into one scalar load and a broadcast.
//
// A workgroup computes ROWS rows of c; each lane computes four columns of all these rows. In a step, DEPTH elements of each row of
// a are staged in workgroup memory, where all lanes read the same ones. Each lane loads DEPTH elements of b for its own columns,
// once for all rows. So each sum is loaded and stored once for DEPTH fma; an element of a serves four fma, one of b ROWS.
//
// Loops over rows are unrolled, because an array stays in registers only while all its indices are constants. docs/performance.md
// says how the numbers were chosen.

#include "product.wgsl"

const LANES: u32 = ${lanes}u; // f32 in a vector of the CPU
const LANE_GROUPS: u32 = ${lane_groups}u; // groups of lanes, side by side along the columns
#set rows = 64
const ROWS: u32 = ${rows}u;
const DEPTH: u32 = 5u;
const THREADS: u32 = LANES * LANE_GROUPS;

var<workgroup> left: array<f32, ROWS * DEPTH>;

var<private> sums: array<vec4<f32>, ROWS>;
// DEPTH elements of b for each of the lane's four columns.
var<private> right_0: vec4<f32>;
var<private> right_1: vec4<f32>;
var<private> right_2: vec4<f32>;
var<private> right_3: vec4<f32>;
var<private> right_4: vec4<f32>;
// Places for storing the sums.
var<private> first_row: u32; // first row of the workgroup
var<private> first_column: u32; // the lane's first column, in vectors
var<private> place: u32; // index of that column of the first row in c
var<private> exists: vec4<bool>; // which of the lane's columns c has

#if width == "scalar"
// The four columns of a lane are LANES apart and stored one by one, so that neighbouring lanes store neighbouring elements.

const COLUMN_STEP: u32 = LANES;
// What a loop after the sums adds: in store_row it would be compiled anew for each row.
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
#else
// The four columns of a lane are neighbours and stored as one vec4.

const COLUMN_STEP: u32 = 1u;
// What a loop after the sums adds. The bias is not among it, because it is added before the sum is rounded.
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
#endif

// Stages DEPTH elements of each row of a. Rows and columns after the last one repeat it, which costs less than a test; their sums
// are not stored. Elements after the end of the sums count as 0 in both factors, because what is stored there may be NaN.
fn stage(lane: u32, first_k: u32, end: u32) {
    for (var i = lane; i < ROWS * DEPTH; i += THREADS) {
        // Neighbouring lanes take neighbouring addresses.
        let row = select(i / DEPTH, i % ROWS, TRANSPOSE_A);
        let place = select(i % DEPTH, i / ROWS, TRANSPOSE_A);
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
    let column = number % params.tiles_x * (4u * THREADS) + lane / LANES * (4u * LANES) + lane % LANES * VECTOR_WIDTH;
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
#for r in range(rows)
        add_row(${r}u);
#endfor
    }
    // Workgroups beyond the last one write nothing.
    if (split * params.split < max(params.inner, 1u)) {
        exists = columns < vec4<u32>(params.columns);
        first_column = column / VECTOR_WIDTH;
        place = params.c_skip + split * params.split_stride + first_row * params.c_stride + first_column;
        if (has_flag(FLAG_ACCUMULATE)) {
#for r in range(rows)
            add_stored(${r}u);
#endfor
        }
#for r in range(rows)
        store_row(${r}u);
#endfor
        if (${activation != "identity"} || has_flag(FLAGS_AFTER)) {
            for (var r = first_row; r < min(params.rows, first_row + ROWS); r++) {
                finish_row(r * params.c_stride + first_column, columns);
            }
        }
    }
}
