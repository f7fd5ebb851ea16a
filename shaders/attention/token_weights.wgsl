// The attention weight of each key of one branch for one query: 2^(score - m) / s, where (m, s) is the query's softmax state over
// all branches. One invocation computes one key and head. All heads of a dispatch have the same query token and the same keys.

#include "elements.wgsl"
#include "workgroup.wgsl"

const HEAD_DIM_VEC4: u32 = ${head_dim // 4}u;

struct TokenWeightsParams {
    num_heads: u32, // heads of the tensors
    head_begin: u32, // first head of the dispatch
    head_count: u32, // number of heads of the dispatch
    num_keys: u32,
    dilation_rate: u32, // tokens from key to key
    has_query: u32, // 0: the row is padding and its query counts as 0
    q_skip: u32, // vec4 of the binding before the query of head 0
    k_skip: u32, // vec4 of the binding before the first key of head 0
    state_skip: u32, // states (vec2) before that of head 0
    out_skip: u32, // elements before the weight of the first key, head 0
    out_stride: u32, // elements from the weights of one head to those of the next
    scale_log2e: f32, // softmax scale * log2(e)
    first_workgroup: u32, // number of the first workgroup of this part of the dispatch
    grid_width: u32, // workgroups along x
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
