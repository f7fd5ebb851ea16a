// out = activation(x), element by element; one invocation computes one vector.

#include "activations.wgsl"
#include "workgroup.wgsl"

struct ElementwiseParams {
    count: u32, // vectors to compute
    x_skip: u32, // vectors of the binding of x before the first one used
    out_skip: u32, // the same for out
    first_workgroup: u32, // number of the first workgroup of this part of the dispatch
    grid_width: u32, // workgroups along x
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
