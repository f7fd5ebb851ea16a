// Both factors of a product in fours, the right one stored as the left one.

@group(0) @binding(2) var<storage, read> b: array<Word>;

fn four_a(at: u32) -> vec4<f32> {
    return four(a[at]);
}

fn four_b(at: u32) -> vec4<f32> {
    return four(b[at]);
}
