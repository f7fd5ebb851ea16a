// As slabs_vec4.wgsl, in scalars: Metal loads and stores matrices through pointers to scalars only.
// Prelude: HALVES, FLOATS, the vec4 in each.

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
