// The right factor of a product, stored as the left one.

@group(0) @binding(2) var<storage, read> b: array<Word>;

fn load_b(k: u32, column: u32) -> f32 {
    let i = index_b(k, column);
    return element(b[i / PER_WORD], i);
}
