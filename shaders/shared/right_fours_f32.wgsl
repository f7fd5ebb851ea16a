// Both factors of a product in fours, the right one f32 whatever the left one is.

@group(0) @binding(2) var<storage, read> b: array<vec4<f32>>;

fn four_a(at: u32) -> vec4<f32> {
    return four(a[at]);
}

fn four_b(at: u32) -> vec4<f32> {
    return b[at];
}
