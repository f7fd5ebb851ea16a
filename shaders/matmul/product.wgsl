// Parameters and bindings of matrix products, and how a sum becomes an element of c: bias, activation, scaled residual, in this order.
//
// c has `rows` rows and `columns` columns; `inner` is the length of the sums. Matrices are row-major, of any width, and may begin
// at any element of their bindings. `transpose_a` and `transpose_b` say which factors are stored transposed. c, bias and residual
// are read and written in vectors (vector_width.wgsl).

#include "activations.wgsl"
#include "factors.wgsl"
#include "workgroup.wgsl"

const TRANSPOSE_A: bool = ${transpose_a};
const TRANSPOSE_B: bool = ${transpose_b};

struct MatmulParams {
    rows: u32, // rows of c in the bound window
    columns: u32, // columns of c in this dispatch
    inner: u32, // elements of the sums in this dispatch
    a_skip: u32, // elements of the binding of a before the first one used
    a_stride: u32, // elements from one row of a, as stored, to the next
    b_skip: u32, // the same for b
    b_stride: u32,
    c_skip: u32, // vectors of the binding of c before the first one used
    c_stride: u32, // vectors from one row of c, and of the residual, to the next
    bias_skip: u32, // vectors of the binding of the bias before the first one used
    residual_skip: u32, // vectors of the binding of the residual before the first one used
    residual_scale: f32, // factor on the residual
    flags: u32, // sum of FLAG_ bits
    split: u32, // elements of the sums in a split; each split has workgroups of its own
    split_stride: u32, // vectors of c from the result of one split to that of the next
    tiles_x: u32, // tiles along the columns of c
    tiles_y: u32, // tiles along the rows of c
    first_workgroup: u32, // number of the first workgroup of this part of the dispatch
    grid_width: u32, // workgroups along x
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

// Index of the element of op(a) in row `row`, inner element k.
fn index_a(row: u32, k: u32) -> u32 {
    return params.a_skip + select(row * params.a_stride + k, k * params.a_stride + row, TRANSPOSE_A);
}

// Index of the element of op(b) in inner element k, column `column`.
fn index_b(k: u32, column: u32) -> u32 {
    return params.b_skip + select(k * params.b_stride + column, column * params.b_stride + k, TRANSPOSE_B);
}

// The sum plus the bias of vector `column` of a row.
fn biased(sum: Vector, column: u32) -> Vector {
    if (has_flag(FLAG_BIAS)) {
        return sum + bias[params.bias_skip + column];
    }
    return sum;
}

// The activation of a sum, plus the scaled residual at vector `at` of the residual.
fn activated(sum: Vector, at: u32) -> Vector {
    let result = activate(sum);
    if (has_flag(FLAG_RESIDUAL)) {
        return fma(Vector(params.residual_scale), widen(residual[params.residual_skip + at]), result);
    }
    return result;
}

// Bias, activation and residual of a vector of sums.
fn finish(sum: Vector, at: u32, column: u32) -> Vector {
    return activated(biased(sum, column), at);
}
