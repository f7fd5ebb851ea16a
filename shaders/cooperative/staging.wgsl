// NaN and infinity in staged vectors of kernels with cooperative matrices. A matrix product carries them to every row, even to rows
// that weigh the vector with 0 because they do not see it. So where some rows do not see all staged vectors, a vector with a NaN or
// an infinity is staged as 0 and marked here, and the kernel sets the weight to NaN for the rows that do see it. The including
// kernel defines STAGED, the number of its staged vectors.

// For each staged vector: 0, or the bits of a NaN if the vector is marked.
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

// The marks of four neighbouring vectors as floats: 0 or NaN.
fn broken_places(place: u32) -> vec4<f32> {
    return bitcast<vec4<f32>>(vec4<u32>(atomicLoad(&broken[place]), atomicLoad(&broken[place + 1u]),
        atomicLoad(&broken[place + 2u]), atomicLoad(&broken[place + 3u])));
}
