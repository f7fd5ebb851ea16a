// The factors of a product, two elements in a word.

@group(0) @binding(1) var<storage, read> a: array<u32>;
@group(0) @binding(2) var<storage, read> b: array<u32>;

fn load_a(i: u32) -> f32 {
    let two = widen(Stored4(a[i / 2u], 0u));
    return select(two.x, two.y, i % 2u == 1u);
}

fn load_b(i: u32) -> f32 {
    let two = widen(Stored4(b[i / 2u], 0u));
    return select(two.x, two.y, i % 2u == 1u);
}
