// How much one query attends to each key of one branch: 2^(score - m) / s, with the state (m, s) of the row over all branches.
// One invocation per key and head; the heads of a dispatch share the query's row and the keys.

#include "elements.wgsl"
#include "workgroup.wgsl"

const HEAD_DIM_VEC4: u32 = ${head_dim // 4}u;

struct TokenWeightsParams {
    num_heads: u32,
    head_begin: u32,
    head_count: u32,
    num_keys: u32,
    dilation_rate: u32, // tokens from key to key
    has_query: u32, // 0: the row is padding, its query 0
    q_skip: u32, // vec4 of the binding before the query of head 0
    k_skip: u32, // the same before the first key of head 0
    state_skip: u32, // elements before the state of head 0
    out_skip: u32, // elements before the weight of head 0 and the first key
    out_stride: u32, // elements from head to head of the weights
    scale_log2e: f32, // softmax scale * log2(e)
    first_workgroup: u32,
    grid_width: u32,
}

@group(0) @binding(0) var<uniform> params: TokenWeightsParams;
@group(0) @binding(1) var<storage, read> q: array<Stored4>;
@group(0) @binding(2) var<storage, read> k: array<Stored4>;
@group(0) @binding(3) var<storage, read> softmax_state: array<vec2<f32>>;
@group(0) @binding(4) var<storage, read_write> weights: array<f32>;

@compute @workgroup_size(64)
fn token_weights(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
    let number = workgroup_number(group);
    let head = params.head_begin + number % params.head_count;
    let key = number / params.head_count * 64u + lane;
    if (key < params.num_keys) {
        let query_begin = params.q_skip + head * HEAD_DIM_VEC4;
        let key_begin = params.k_skip + (key * params.dilation_rate * params.num_heads + head) * HEAD_DIM_VEC4;
        var score = 0.0;
        if (params.has_query == 1u) {
            for (var c = 0u; c < HEAD_DIM_VEC4; c++) {
                score += dot(widen(q[query_begin + c]), widen(k[key_begin + c]));
            }
        }
        let state = softmax_state[params.state_skip + head];
        let weight = exp2(fma(score, params.scale_log2e, -state.x)) / state.y;
        weights[params.out_skip + head * params.out_stride + key * params.dilation_rate] = weight;
    }
}
