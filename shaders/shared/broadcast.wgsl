// What the lanes of a subgroup of eight hold, handed to all of them.

fn first_four(own: vec4<f32>) -> mat4x4<f32> {
    return mat4x4<f32>(subgroupBroadcast(own, 0u), subgroupBroadcast(own, 1u), subgroupBroadcast(own, 2u), subgroupBroadcast(own, 3u));
}

fn last_four(own: vec4<f32>) -> mat4x4<f32> {
    return mat4x4<f32>(subgroupBroadcast(own, 4u), subgroupBroadcast(own, 5u), subgroupBroadcast(own, 6u), subgroupBroadcast(own, 7u));
}
