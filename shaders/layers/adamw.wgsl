// One step of Adam with decoupled weight decay (Loshchilov and Hutter 2019), with clipping by the norm of all gradients. Where a
// gradient is not finite, neither is the norm, and the step changes nothing. One invocation updates one element.

#include "workgroup.wgsl"

struct AdamWParams {
    count: u32, // elements to update
    skip: u32, // elements of the bindings of gradient, value and both moments before the first one used
    learning_rate: f32,
    beta_1: f32,
    beta_2: f32,
    eps: f32,
    weight_decay: f32,
    correction_1: f32, // 1 / (1 - beta_1^t) in step t
    correction_2: f32, // 1 / (1 - beta_2^t)
    max_norm: f32, // gradients are scaled down to this norm; 0: no clipping
    gradient_scale: f32, // factor on the gradients before clipping
    first_workgroup: u32, // number of the first workgroup of this part of the dispatch
    grid_width: u32, // workgroups along x
}

@group(0) @binding(0) var<uniform> params: AdamWParams;
// One element: the sum of the squares of all gradients, of all tensors.
@group(0) @binding(1) var<storage, read> norm_squared: array<f32>;
@group(0) @binding(2) var<storage, read> gradient: array<f32>;
@group(0) @binding(3) var<storage, read_write> value: array<f32>;
@group(0) @binding(4) var<storage, read_write> moment_1: array<f32>;
@group(0) @binding(5) var<storage, read_write> moment_2: array<f32>;

@compute @workgroup_size(64)
fn adamw(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = workgroup_number(group) * 64u + lane;
    // Tested by its bits, because compilers may assume that no comparison ever meets an infinity.
    let finite = (bitcast<u32>(norm_squared[0]) & 0x7f800000u) != 0x7f800000u;
    if (i < params.count && finite) {
        let at = params.skip + i;
        var g = params.gradient_scale * gradient[at];
        if (params.max_norm > 0.0) {
            let norm = params.gradient_scale * sqrt(norm_squared[0]);
            g *= min(1.0, params.max_norm / (norm + 1e-6));
        }
        let m = fma(params.beta_1, moment_1[at], (1.0 - params.beta_1) * g);
        let v = fma(params.beta_2, moment_2[at], (1.0 - params.beta_2) * g * g);
        moment_1[at] = m;
        moment_2[at] = v;
        let step = m * params.correction_1 / (sqrt(v * params.correction_2) + params.eps);
        let old = value[at];
        value[at] = old - params.learning_rate * fma(params.weight_decay, old, step);
    }
}
