// Converts elements from f32 to `format` or, with `widens`, from `format` to f32. One invocation converts one vec4.

#include "elements.wgsl"
#include "workgroup.wgsl"

struct ElementwiseParams {
    count: u32, // vec4 to convert
    x_skip: u32, // vec4 of the binding of x before the first one used
    out_skip: u32, // the same for out
    first_workgroup: u32, // number of the first workgroup of this part of the dispatch
    grid_width: u32, // workgroups along x
}

@group(0) @binding(0) var<uniform> params: ElementwiseParams;
#if widens
@group(0) @binding(1) var<storage, read> x: array<Stored4>;
@group(0) @binding(2) var<storage, read_write> out: array<vec4<f32>>;
#else
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> out: array<Stored4>;
#endif

@compute @workgroup_size(64)
fn convert(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = workgroup_number(group) * 64u + lane;
    if (i < params.count) {
#if widens
        out[params.out_skip + i] = widen(x[params.x_skip + i]);
#else
        out[params.out_skip + i] = narrow(x[params.x_skip + i]);
#endif
    }
}
