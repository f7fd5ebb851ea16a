// Gradient of x where y = activation(x). On entry `gradient` holds the gradient of y, which that of x replaces. One invocation
// computes one f32.

#include "activations.wgsl"
#include "workgroup.wgsl"

struct ElementwiseParams {
    count: u32, // elements to compute
    x_skip: u32, // elements of the binding of x before the first one used
    out_skip: u32, // the same for gradient
    first_workgroup: u32, // number of the first workgroup of this part of the dispatch
    grid_width: u32, // workgroups along x
}

@group(0) @binding(0) var<uniform> params: ElementwiseParams;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> gradient: array<f32>;

@compute @workgroup_size(64)
fn activation_backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = workgroup_number(group) * 64u + lane;
    if (i < params.count) {
        gradient[params.out_skip + i] *= activation_slope(x[params.x_skip + i]);
    }
}
