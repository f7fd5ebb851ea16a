// Workgroup memory of the kernels with cooperative matrices, in vec4: matrices are loaded from and stored to it only, since
// they give no access to their elements. Addresses and strides count vec4 everywhere; a matrix begins at &halves[at * CELLS]
// and its rows lie stride * CELLS apart.
// Prelude: HALVES, FLOATS, the vec4 in each.

const CELLS: u32 = 1u; // elements of the arrays in a vec4

var<workgroup> halves: array<vec4<f16>, HALVES>;
var<workgroup> floats: array<vec4<f32>, FLOATS>;

fn put_halves(at: u32, x: vec4<f16>) {
    halves[at] = x;
}

fn put_floats(at: u32, x: vec4<f32>) {
    floats[at] = x;
}

fn get_floats(at: u32) -> vec4<f32> {
    return floats[at];
}
