// Cooperative matrices of `size` x `size` elements: f16 factors, f32 sums. All lanes of a subgroup hold one together, and it gives
// no access to its elements: matrices are loaded from and stored to workgroup memory only.
//
// Addresses and strides there count vec4 everywhere; a matrix begins at &halves[at * CELLS] and its rows lie stride * CELLS apart.
// Metal loads and stores matrices through pointers to scalars only (`scalar_pointers`).
// A kernel has HALVES and FLOATS, the vec4 in each array.

enable f16;
enable wgpu_cooperative_matrix;

const SIZE: u32 = ${size}u;
alias Left = coop_mat${size}x${size}<f16, A>;
alias Right = coop_mat${size}x${size}<f16, B>;
alias Sum = coop_mat${size}x${size}<f32, C>;

#if scalar_pointers
const CELLS: u32 = 4u; // elements of the arrays in a vec4

var<workgroup> halves: array<f16, 4u * HALVES>;
var<workgroup> floats: array<f32, 4u * FLOATS>;

fn put_halves(at: u32, x: vec4<f16>) {
    halves[4u * at] = x.x;
    halves[4u * at + 1u] = x.y;
    halves[4u * at + 2u] = x.z;
    halves[4u * at + 3u] = x.w;
}

fn put_floats(at: u32, x: vec4<f32>) {
    floats[4u * at] = x.x;
    floats[4u * at + 1u] = x.y;
    floats[4u * at + 2u] = x.z;
    floats[4u * at + 3u] = x.w;
}

fn get_floats(at: u32) -> vec4<f32> {
    return vec4<f32>(floats[4u * at], floats[4u * at + 1u], floats[4u * at + 2u], floats[4u * at + 3u]);
}
#else
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
#endif
