// out = x in f32, four elements an invocation.

struct ElementwiseParams {
    count: u32, // of vec4, as all here
    x_skip: u32,
    y_skip: u32,
    out_skip: u32,
    first_workgroup: u32,
    grid_width: u32,
}

@group(0) @binding(0) var<uniform> params: ElementwiseParams;
@group(0) @binding(1) var<storage, read> x: array<Stored4>;
@group(0) @binding(2) var<storage, read_write> out: array<vec4<f32>>;

@compute @workgroup_size(64)
fn to_f32(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = workgroup_number(group) * 64u + lane;
    if (i < params.count) {
        out[params.out_skip + i] = widen(x[params.x_skip + i]);
    }
}
