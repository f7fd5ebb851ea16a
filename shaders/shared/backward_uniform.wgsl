// On CPUs whose driver turns a load at an address all lanes share into one scalar load and a broadcast (lavapipe of Mesa 26
// and later): each lane loads the staged vectors itself.

fn begin_sharing() {
}

fn four_a(c: u32) -> mat4x4<f32> {
    return mat4x4<f32>(staged_a[c], staged_a[HEAD_DIM_VEC4 + c], staged_a[2u * HEAD_DIM_VEC4 + c], staged_a[3u * HEAD_DIM_VEC4 + c]);
}

fn four_b(c: u32) -> mat4x4<f32> {
    return mat4x4<f32>(staged_b[c], staged_b[HEAD_DIM_VEC4 + c], staged_b[2u * HEAD_DIM_VEC4 + c], staged_b[3u * HEAD_DIM_VEC4 + c]);
}

fn add_products_a(c: u32) {
    add_four_products_a(0u, c, four_a(c));
}

fn add_products_b(c: u32) {
    add_four_products_b(0u, c, four_b(c));
}

fn add_to_a(c: u32) {
    add_four_to_a(0u, c, four_a(c));
}

fn add_to_b(c: u32) {
    add_four_to_b(0u, c, four_b(c));
}
