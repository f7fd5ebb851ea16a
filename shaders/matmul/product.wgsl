// Parameters and bindings of the products of matrices, and how a sum is finished: bias, `activation`, scaled residual.
//
// Matrices are row-major with any number of columns, at any element of their bindings. The result, the bias and the residual are
// vectors. `transpose_a` and `transpose_b` say how the factors are stored.

#include "activations.wgsl"
#include "factors.wgsl"
#include "workgroup.wgsl"

const TRANSPOSE_A: bool = ${transpose_a};
const TRANSPOSE_B: bool = ${transpose_b};

struct MatmulParams {
    rows: u32, // of c: the first of the window's rows is row 0
    columns: u32, // of this dispatch
    inner: u32, // of this dispatch
    a_skip: u32, // elements of the bindings before the first one used
    a_stride: u32, // elements from row to row as stored
    b_skip: u32,
    b_stride: u32,
    c_skip: u32, // of c, bias and residual: in vectors
    c_stride: u32,
    bias_skip: u32,
    residual_skip: u32,
    residual_scale: f32,
    flags: u32,
    split: u32, // inner elements of one split; splits beyond the first write c further down, split_stride elements each
    split_stride: u32,
    tiles_x: u32, // tiles along the columns, and along the rows
    tiles_y: u32,
    first_workgroup: u32,
    grid_width: u32,
}

const FLAG_ACCUMULATE: u32 = 1u;
const FLAG_BIAS: u32 = 2u;
const FLAG_RESIDUAL: u32 = 4u;

@group(0) @binding(0) var<uniform> params: MatmulParams;
@group(0) @binding(3) var<storage, read> bias: array<Vector>;
@group(0) @binding(4) var<storage, read> residual: array<Stored>;
@group(0) @binding(5) var<storage, read_write> c: array<Stored>;

fn has_flag(flag: u32) -> bool {
    return (params.flags & flag) != 0u;
}

fn index_a(row: u32, k: u32) -> u32 {
    return params.a_skip + select(row * params.a_stride + k, k * params.a_stride + row, TRANSPOSE_A);
}

fn index_b(k: u32, column: u32) -> u32 {
    return params.b_skip + select(k * params.b_stride + column, column * params.b_stride + k, TRANSPOSE_B);
}

fn biased(sum: Vector, column: u32) -> Vector {
    if (has_flag(FLAG_BIAS)) {
        return sum + bias[params.bias_skip + column];
    }
    return sum;
}

// With activation and residual.
fn activated(sum: Vector, at: u32) -> Vector {
    let result = activate(sum);
    if (has_flag(FLAG_RESIDUAL)) {
        return fma(Vector(params.residual_scale), widen(residual[params.residual_skip + at]), result);
    }
    return result;
}

// Bias, activation and residual, in this order, of a vector whose sum is known.
fn finish(sum: Vector, at: u32, column: u32) -> Vector {
    return activated(biased(sum, column), at);
}
