// Adds up partial results in the order of their numbers: out[i] (+)= sum over s of partials[s][i].

#include "workgroup.wgsl"

struct SumPartialsParams {
    count: u32, // elements of one partial result
    num_partials: u32,
    partials_skip: u32,
    stride: u32, // elements from one partial result to the next
    out_skip: u32,
    accumulate: u32,
    first_workgroup: u32,
    grid_width: u32,
}

@group(0) @binding(0) var<uniform> params: SumPartialsParams;
@group(0) @binding(1) var<storage, read> partials: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(64)
fn sum_partials(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = workgroup_number(group) * 64u + lane;
    if (i < params.count) {
        var sum = 0.0;
        for (var s = 0u; s < params.num_partials; s++) {
            sum += partials[params.partials_skip + s * params.stride + i];
        }
        let at = params.out_skip + i;
        if (params.accumulate != 0u) {
            sum += out[at];
        }
        out[at] = sum;
    }
}
