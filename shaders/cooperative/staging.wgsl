// Vectors staged for cooperative matrices. A product carries a NaN or an infinity to every row that it meets, weighted by 0
// or not; so where some rows do not see a vector, one that has any is staged as 0, and marked, and the pairs that do see it
// become NaN. A kernel has STAGED, the number of its staged vectors.

// 0, or the bits of a NaN for a staged vector that is marked.
var<workgroup> broken: array<atomic<u32>, STAGED>;

fn is_finite(x: vec4<f16>) -> bool {
    return all(abs(x) <= vec4<f16>(65504.0h));
}

fn mark_broken(place: u32) {
    atomicStore(&broken[place], 0x7fc00000u);
}

fn clear_broken(index: u32, threads: u32) {
    for (var place = index; place < STAGED; place += threads) {
        atomicStore(&broken[place], 0u);
    }
}

// 0 or NaN for four neighbours.
fn broken_places(place: u32) -> vec4<f32> {
    return bitcast<vec4<f32>>(vec4<u32>(atomicLoad(&broken[place]), atomicLoad(&broken[place + 1u]),
        atomicLoad(&broken[place + 2u]), atomicLoad(&broken[place + 3u])));
}
