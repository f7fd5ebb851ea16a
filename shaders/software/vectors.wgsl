// Arithmetic with vec4 in registers, for software drivers.

// Which of four values are finite. Tested by their bits, without a comparison of floats.
fn is_finite(value: vec4<f32>) -> vec4<bool> {
    return (bitcast<vec4<u32>>(value) & vec4<u32>(0x7f800000u)) != vec4<u32>(0x7f800000u);
}

// sum + a . b
fn dot_add(a: vec4<f32>, b: vec4<f32>, sum: f32) -> f32 {
    return fma(a.w, b.w, fma(a.z, b.z, fma(a.y, b.y, fma(a.x, b.x, sum))));
}

// The four sums plus the dot products of `own` with the columns of `four`.
fn dots(own: vec4<f32>, four: mat4x4<f32>, sum: vec4<f32>) -> vec4<f32> {
    return vec4<f32>(dot_add(own, four[0], sum.x), dot_add(own, four[1], sum.y), dot_add(own, four[2], sum.z), dot_add(own, four[3], sum.w));
}

// sum plus the columns of `four`, weighted by the components of w.
fn weigh(w: vec4<f32>, four: mat4x4<f32>, sum: vec4<f32>) -> vec4<f32> {
    let two = fma(vec4<f32>(w.y), four[1], fma(vec4<f32>(w.x), four[0], sum));
    return fma(vec4<f32>(w.w), four[3], fma(vec4<f32>(w.z), four[2], two));
}
