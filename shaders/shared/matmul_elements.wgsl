// Elements of the left factor of a product, one by one.

fn load_a(row: u32, k: u32) -> f32 {
    let i = index_a(row, k);
    return element(a[i / PER_WORD], i);
}
