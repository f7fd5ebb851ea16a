// Forward attention on CPUs of the `rows` tier, whose driver turns a load at an address shared by all lanes into one scalar load
// and a broadcast (lavapipe of Mesa 26 and later). Each lane loads the staged vectors itself. Everything else is in
// forward_lanes.wgsl.

#include "forward_lanes.wgsl"

fn staged_key(key: u32, c: u32) -> vec4<f32> {
    return keys[key * HEAD_DIM_VEC4 + c];
}

fn staged_value(key: u32, c: u32) -> vec4<f32> {
    return values[key * HEAD_DIM_VEC4 + c];
}

fn add_scores(c: u32) {
    add_products(0u, c, mat4x4<f32>(staged_key(0u, c), staged_key(1u, c), staged_key(2u, c), staged_key(3u, c)));
}

fn add_values(c: u32) {
    add_weighed(0u, c, mat4x4<f32>(staged_value(0u, c), staged_value(1u, c), staged_value(2u, c), staged_value(3u, c)));
}

@compute @workgroup_size(THREADS)
fn forward_rows(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    attend(workgroup, lane);
}
