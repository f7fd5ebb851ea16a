// Sums of blocks of 4096 elements or, with `squares`, of their squares. Each sum has a fixed order, so that every run has the same
// bits. A workgroup sums one block; an invocation takes 64 elements, 64 apart.

#include "workgroup.wgsl"

struct ReduceParams {
    count: u32, // elements to sum
    x_skip: u32, // elements of the binding of x before the first one used
    out_skip: u32, // elements of the binding of sums before that of the first block
    first_workgroup: u32, // number of the first workgroup of this part of the dispatch
    grid_width: u32, // workgroups along x
}

@group(0) @binding(0) var<uniform> params: ReduceParams;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> sums: array<f32>;

const PER_THREAD: u32 = 64u;

var<workgroup> partial: array<f32, 64>;

@compute @workgroup_size(64)
fn reduce(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let number = workgroup_number(group);
    let first = number * 64u * PER_THREAD + lane;
    var sum = 0.0;
    for (var i = 0u; i < PER_THREAD; i++) {
        let at = first + i * 64u;
        if (at < params.count) {
            let value = x[params.x_skip + at];
#if squares
            sum += value * value;
#else
            sum += value;
#endif
        }
    }
    partial[lane] = sum;
    workgroupBarrier();
    for (var half = 32u; half > 0u; half = half / 2u) {
        if (lane < half) {
            partial[lane] += partial[lane + half];
        }
        workgroupBarrier();
    }
    if (lane == 0u && number * 64u * PER_THREAD < params.count) {
        sums[params.out_skip + number] = partial[0];
    }
}
