// The right factor of a product, f32 whatever the left one is.

@group(0) @binding(2) var<storage, read> b: array<f32>;

fn load_b(k: u32, column: u32) -> f32 {
    return b[index_b(k, column)];
}
