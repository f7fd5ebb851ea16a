// Adds up partial results: out[i] = sum over s of partials[s][i], or with `accumulate` out[i] += that sum. The order is fixed, so
// that every run has the same bits. One invocation computes one element.

#include "workgroup.wgsl"

struct SumPartialsParams {
    count: u32, // elements of one partial result
    num_partials: u32, // number of partial results
    partials_skip: u32, // elements of the binding of partials before the first one
    stride: u32, // elements from one partial result to the next
    out_skip: u32, // elements of the binding of out before the first one used
    accumulate: u32, // 1: add to out; 0: overwrite it
    first_workgroup: u32, // number of the first workgroup of this part of the dispatch
    grid_width: u32, // workgroups along x
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
