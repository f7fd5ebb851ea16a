// Parameters, bindings and stores of the products of matrices. Matrices are row-major with any number of columns, at any
// element of their bindings, so elements are loaded one by one; shared/factors_*.wgsl says how the factors are stored.
// Prelude: TRANSPOSE_A, TRANSPOSE_B (0 or 1), ACTIVATION.

struct MatmulParams {
    rows: u32, // of c: the first of the window's rows is row 0
    columns: u32, // of this dispatch
    inner: u32, // of this dispatch
    a_skip: u32, // elements of the bindings before the first one used
    a_stride: u32, // elements from row to row as stored
    b_skip: u32,
    b_stride: u32,
    c_skip: u32,
    c_stride: u32,
    bias_skip: u32,
    residual_skip: u32,
    residual_scale: f32,
    flags: u32,
    split: u32, // inner elements of one split; splits beyond the first write c further down, split_stride elements each
    split_stride: u32,
    tiles_x: u32, // tiles along the columns, and along the rows
    tiles_y: u32,
    grid_width: u32,
}

const FLAG_ACCUMULATE: u32 = 1u;
const FLAG_BIAS: u32 = 2u;
const FLAG_RESIDUAL: u32 = 4u;

@group(0) @binding(0) var<uniform> params: MatmulParams;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read> residual: array<f32>;
@group(0) @binding(5) var<storage, read_write> c: array<f32>;

fn has_flag(flag: u32) -> bool {
    return (params.flags & flag) != 0u;
}

fn index_a(row: u32, k: u32) -> u32 {
    return params.a_skip + select(row * params.a_stride + k, k * params.a_stride + row, TRANSPOSE_A == 1u);
}

fn index_b(k: u32, column: u32) -> u32 {
    return params.b_skip + select(k * params.b_stride + column, column * params.b_stride + k, TRANSPOSE_B == 1u);
}

// Bias, activation and residual, in this order, of an element whose sum is known.
fn finish(sum: f32, at: u32, column: u32) -> f32 {
    var result = sum;
    if (has_flag(FLAG_BIAS)) {
        result += bias[params.bias_skip + column];
    }
    result = activate(result);
    if (has_flag(FLAG_RESIDUAL)) {
        result = fma(params.residual_scale, residual[params.residual_skip + at], result);
    }
    return result;
}
