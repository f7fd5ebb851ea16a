// Forward attention on CPUs of the `broadcast` tier, whose driver loads once per lane even if all lanes share the address (lavapipe
// before Mesa 26). Each of eight lanes loads a different staged key, and subgroup operations hand it to the other seven. Everything
// else is in forward_lanes.wgsl.

#include "forward_lanes.wgsl"

var<private> own_key: u32; // the staged key that this lane loads

fn first_four(own: vec4<f32>) -> mat4x4<f32> {
    return mat4x4<f32>(subgroupBroadcast(own, 0u), subgroupBroadcast(own, 1u), subgroupBroadcast(own, 2u), subgroupBroadcast(own, 3u));
}

fn last_four(own: vec4<f32>) -> mat4x4<f32> {
    return mat4x4<f32>(subgroupBroadcast(own, 4u), subgroupBroadcast(own, 5u), subgroupBroadcast(own, 6u), subgroupBroadcast(own, 7u));
}

fn add_scores(c: u32) {
    let own = keys[own_key * HEAD_DIM_VEC4 + c];
    add_products(0u, c, first_four(own));
    add_products(1u, c, last_four(own));
}

fn add_values(c: u32) {
    let own = values[own_key * HEAD_DIM_VEC4 + c];
    add_weighed(0u, c, first_four(own));
    add_weighed(1u, c, last_four(own));
}

@compute @workgroup_size(THREADS)
fn forward_broadcast(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_invocation_id) subgroup_lane: u32,
) {
    own_key = subgroup_lane;
    attend(workgroup, lane);
}
