// c = op(a) op(b), with a bias, an activation and a scaled residual in the same pass, on CPU adapters with subgroups of
// eight lanes (lavapipe).
//
// A workgroup is one subgroup of eight lanes. Each lane owns ROWS rows of c, in CELLS cells of columns that all lanes have in
// common. For four elements of the sum a lane loads those of its own rows, in as many loads, and an eighth of those of the
// columns; subgroup operations hand these to the other seven lanes. A step takes DEPTH elements. Factors are read in fours, so
// strides and windows are multiples of 4, and the length of the sum is one of DEPTH; src/ops/matmul.rs takes another kernel else.
// Functions of a number have a form `..._each()` that calls them for all numbers, written by src/kernel/source.rs: an array
// stays in registers only while all its indices are constants. src/kernel/matmul.rs says why these numbers.
// Prelude: ROWS (4 or 8), CELLS (even), DEPTH (4 or 8).

const LANES: u32 = 8u;

var<private> sums: array<vec4<f32>, ROWS * CELLS>;
var<private> left: array<vec4<f32>, 8>; // of each row of the lane, the first ROWS of these, four elements
var<private> left_at: array<vec4<u32>, ROWS / 4u>; // of each four rows; of a transposed one, of each of four k
var<private> left_offset: u32; // of the step
// Of each pair of cells, what the lane loads of b: as stored, one of the cells at one of four k; transposed, four k of one of
// the eight columns.
var<private> right_at: array<u32, CELLS / 2u>;
var<private> right_offset: u32;
// What starting and storing work with.
var<private> lane: u32;
var<private> first_row: u32; // of the lane
var<private> first_cell: u32; // of all lanes, along the columns
var<private> place: u32; // of that cell in the first row, in c

fn find_right(pair: u32) {
    if (TRANSPOSE_B == 1u) {
        let column = min(4u * first_cell + 8u * pair + lane, params.columns - 1u);
        right_at[pair] = (params.b_skip + column * params.b_stride) / 4u;
    } else {
        let cell = min(first_cell + 2u * pair + lane / 4u, params.columns / 4u - 1u);
        right_at[pair] = (params.b_skip + lane % 4u * params.b_stride) / 4u + cell;
    }
}

// Rows outside c repeat the last one, and so do columns: their sums are not stored.
fn find_left(four: u32) {
    let rows = min(vec4<u32>(first_row + 4u * four) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(params.rows - 1u));
    if (TRANSPOSE_A == 1u) {
        left_at[four] = (params.a_skip + vec4<u32>(0u, 1u, 2u, 3u) * params.a_stride + rows.x) / 4u;
    } else {
        left_at[four] = (params.a_skip + rows * params.a_stride) / 4u;
    }
}

fn load_left(four: u32) {
    let at = left_at[four] + left_offset;
    var rows = mat4x4<f32>(four_a(at.x), four_a(at.y), four_a(at.z), four_a(at.w));
    if (TRANSPOSE_A == 1u) {
        rows = transpose(rows);
    }
    left[4u * four] = rows[0];
    left[4u * four + 1u] = rows[1];
    left[4u * four + 2u] = rows[2];
    left[4u * four + 3u] = rows[3];
}

// Loads the lane's part of two cells of columns, and adds products with them. Columns go one by one, so that what lanes hand
// over stays in registers.
fn add_pair(pair: u32) {
    let own = four_b(right_at[pair] + right_offset);
    add_column(2u * pair, 0u, handed_0(own));
    add_column(2u * pair, 1u, handed_1(own));
    add_column(2u * pair, 2u, handed_2(own));
    add_column(2u * pair, 3u, handed_3(own));
    add_column(2u * pair + 1u, 0u, handed_4(own));
    add_column(2u * pair + 1u, 1u, handed_5(own));
    add_column(2u * pair + 1u, 2u, handed_6(own));
    add_column(2u * pair + 1u, 3u, handed_7(own));
}

fn handed_0(own: vec4<f32>) -> vec4<f32> {
    if (TRANSPOSE_B == 1u) {
        return subgroupBroadcast(own, 0u);
    }
    return vec4<f32>(subgroupBroadcast(own.x, 0u), subgroupBroadcast(own.x, 1u), subgroupBroadcast(own.x, 2u), subgroupBroadcast(own.x, 3u));
}

fn handed_1(own: vec4<f32>) -> vec4<f32> {
    if (TRANSPOSE_B == 1u) {
        return subgroupBroadcast(own, 1u);
    }
    return vec4<f32>(subgroupBroadcast(own.y, 0u), subgroupBroadcast(own.y, 1u), subgroupBroadcast(own.y, 2u), subgroupBroadcast(own.y, 3u));
}

fn handed_2(own: vec4<f32>) -> vec4<f32> {
    if (TRANSPOSE_B == 1u) {
        return subgroupBroadcast(own, 2u);
    }
    return vec4<f32>(subgroupBroadcast(own.z, 0u), subgroupBroadcast(own.z, 1u), subgroupBroadcast(own.z, 2u), subgroupBroadcast(own.z, 3u));
}

fn handed_3(own: vec4<f32>) -> vec4<f32> {
    if (TRANSPOSE_B == 1u) {
        return subgroupBroadcast(own, 3u);
    }
    return vec4<f32>(subgroupBroadcast(own.w, 0u), subgroupBroadcast(own.w, 1u), subgroupBroadcast(own.w, 2u), subgroupBroadcast(own.w, 3u));
}

fn handed_4(own: vec4<f32>) -> vec4<f32> {
    if (TRANSPOSE_B == 1u) {
        return subgroupBroadcast(own, 4u);
    }
    return vec4<f32>(subgroupBroadcast(own.x, 4u), subgroupBroadcast(own.x, 5u), subgroupBroadcast(own.x, 6u), subgroupBroadcast(own.x, 7u));
}

fn handed_5(own: vec4<f32>) -> vec4<f32> {
    if (TRANSPOSE_B == 1u) {
        return subgroupBroadcast(own, 5u);
    }
    return vec4<f32>(subgroupBroadcast(own.y, 4u), subgroupBroadcast(own.y, 5u), subgroupBroadcast(own.y, 6u), subgroupBroadcast(own.y, 7u));
}

fn handed_6(own: vec4<f32>) -> vec4<f32> {
    if (TRANSPOSE_B == 1u) {
        return subgroupBroadcast(own, 6u);
    }
    return vec4<f32>(subgroupBroadcast(own.z, 4u), subgroupBroadcast(own.z, 5u), subgroupBroadcast(own.z, 6u), subgroupBroadcast(own.z, 7u));
}

fn handed_7(own: vec4<f32>) -> vec4<f32> {
    if (TRANSPOSE_B == 1u) {
        return subgroupBroadcast(own, 7u);
    }
    return vec4<f32>(subgroupBroadcast(own.w, 4u), subgroupBroadcast(own.w, 5u), subgroupBroadcast(own.w, 6u), subgroupBroadcast(own.w, 7u));
}

fn add_column(cell: u32, column: u32, four: vec4<f32>) {
    add_element(cell, column, 0u, four);
    add_element(cell, column, 1u, four);
    add_element(cell, column, 2u, four);
    add_element(cell, column, 3u, four);
    if (ROWS > 4u) {
        add_element(cell, column, 4u, four);
        add_element(cell, column, 5u, four);
        add_element(cell, column, 6u, four);
        add_element(cell, column, 7u, four);
    }
}

fn add_element(cell: u32, column: u32, row: u32, four: vec4<f32>) {
    sums[row * CELLS + cell][column] = dot_add(left[row], four, sums[row * CELLS + cell][column]);
}

fn dot_add(a: vec4<f32>, b: vec4<f32>, sum: f32) -> f32 {
    return fma(a.w, b.w, fma(a.z, b.z, fma(a.y, b.y, fma(a.x, b.x, sum))));
}

fn add_four(k: u32) {
    left_offset = k / 4u * select(1u, params.a_stride, TRANSPOSE_A == 1u);
    right_offset = k / 4u * select(params.b_stride, 1u, TRANSPOSE_B == 1u);
    load_left_each();
    add_pair_each();
}

// Sums begin at the bias, so that it is added before they are rounded.
fn start_sum(i: u32) {
    sums[i] = biased(vec4<f32>(), min(first_cell + i % CELLS, params.columns / 4u - 1u));
}

fn exists(i: u32) -> bool {
    return first_row + i / CELLS < params.rows && first_cell + i % CELLS < params.columns / 4u;
}

fn add_stored(i: u32) {
    if (exists(i)) {
        sums[i] += widen(c[place + i / CELLS * params.c_stride + i % CELLS]);
    }
}

fn store_sum(i: u32) {
    if (exists(i)) {
        c[place + i / CELLS * params.c_stride + i % CELLS] = narrow(sums[i]);
    }
}

@compute @workgroup_size(LANES)
fn matmul_broadcast(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(subgroup_invocation_id) subgroup_lane: u32) {
    lane = subgroup_lane;
    let number = workgroup_number(workgroup);
    first_row = number / params.tiles_x * (ROWS * LANES) + ROWS * lane;
    first_cell = number % params.tiles_x * CELLS;
    find_left_each();
    find_right_each();
    start_sum_each();
    for (var k = 0u; k < params.inner; k += DEPTH) {
        add_four(k);
        if (DEPTH > 4u) {
            add_four(k + 4u);
        }
    }
    let of_c = first_row * params.c_stride + first_cell;
    place = params.c_skip + of_c;
    if (has_flag(FLAG_ACCUMULATE)) {
        add_stored_each();
    }
    store_sum_each();
    if (ACTIVATION != 0u || has_flag(FLAG_RESIDUAL)) {
        for (var i = 0u; i < ROWS * CELLS; i++) {
            if (exists(i)) {
                let at = i / CELLS * params.c_stride + i % CELLS;
                c[place + at] = narrow(activated(widen(c[place + at]), of_c + at));
            }
        }
    }
}
