// out = activation(x)

#include "activations.wgsl"
#include "workgroup.wgsl"

struct ElementwiseParams {
    count: u32, // of vectors, as all here
    x_skip: u32,
    out_skip: u32,
    first_workgroup: u32,
    grid_width: u32,
}

@group(0) @binding(0) var<uniform> params: ElementwiseParams;
@group(0) @binding(1) var<storage, read> x: array<Stored>;
@group(0) @binding(2) var<storage, read_write> out: array<Stored>;

@compute @workgroup_size(64)
fn activation(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = workgroup_number(group) * 64u + lane;
    if (i < params.count) {
        out[params.out_skip + i] = narrow(activate(widen(x[params.x_skip + i])));
    }
}
