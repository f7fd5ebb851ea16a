// Cross-entropy of each row of logits, and its gradient, which replaces the logits. A row whose label is no class has loss 0 and
// gradient 0. A workgroup takes 8 rows, with 8 lanes for each.

#include "row_sums.wgsl"
#include "workgroup.wgsl"

struct CrossEntropyParams {
    rows: u32,
    width: u32, // classes: elements of a row of logits
    logits_skip: u32, // elements of the binding of logits before the first row
    labels_skip: u32, // elements of the binding of labels before that of the first row
    losses_skip: u32, // elements of the binding of losses before that of the first row
    gradient_scale: f32, // factor on the gradient
    first_workgroup: u32, // number of the first workgroup of this part of the dispatch
    grid_width: u32, // workgroups along x
}

@group(0) @binding(0) var<uniform> params: CrossEntropyParams;
@group(0) @binding(1) var<storage, read> labels: array<u32>;
@group(0) @binding(2) var<storage, read_write> logits: array<f32>;
@group(0) @binding(3) var<storage, read_write> losses: array<f32>;

var<workgroup> tops: array<f32, 64>;

// The largest `value` over the 8 lanes of each row; all lanes get the result. All threads call it: it holds barriers.
fn row_top(index: u32, value: f32) -> f32 {
    tops[index] = value;
    workgroupBarrier();
    var top = value;
    let first = index / LANES * LANES;
    for (var i = 0u; i < LANES; i++) {
        top = max(top, tops[first + i]);
    }
    workgroupBarrier();
    return top;
}

@compute @workgroup_size(64)
fn cross_entropy(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let row = workgroup_number(group) * ROWS + index / LANES;
    let lane = index % LANES;
    let exists = row < params.rows;
    let first = params.logits_skip + row * params.width;
    var top = -3e38;
    if (exists) {
        for (var i = lane; i < params.width; i += LANES) {
            top = max(top, logits[first + i]);
        }
    }
    top = row_top(index, top);
    var sum = 0.0;
    if (exists) {
        for (var i = lane; i < params.width; i += LANES) {
            sum += exp(logits[first + i] - top);
        }
    }
    sum = row_sums(index, vec2<f32>(sum, 0.0)).x;
    if (exists) {
        let label = labels[params.labels_skip + row];
        let counts = label < params.width;
        if (lane == select(0u, label % LANES, counts)) {
            var loss = 0.0;
            if (counts) {
                // The difference of the two large numbers first: added to one of them, the logarithm would lose its digits.
                loss = log(sum) + (top - logits[first + label]);
            }
            losses[params.losses_skip + row] = loss;
        }
        let scale = select(0.0, params.gradient_scale, counts);
        for (var i = lane; i < params.width; i += LANES) {
            let share = exp(logits[first + i] - top) / sum;
            logits[first + i] = scale * (share - select(0.0, 1.0, i == label));
        }
    }
}
