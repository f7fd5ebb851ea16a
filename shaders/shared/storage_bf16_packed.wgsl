// How elements are stored, in fours: bf16, two in a word. A bf16 is the upper half of an f32.

alias Stored4 = vec2<u32>;

fn widen(x: Stored4) -> vec4<f32> {
    return bitcast<vec4<f32>>(vec4<u32>(x.x << 16u, x.x & 0xffff0000u, x.y << 16u, x.y & 0xffff0000u));
}

// To the nearest, ties to even; a NaN stays one.
fn narrow(x: vec4<f32>) -> Stored4 {
    let bits = bitcast<vec4<u32>>(x);
    let nearest = (bits + 0x7fffu + ((bits >> vec4<u32>(16u)) & vec4<u32>(1u))) >> vec4<u32>(16u);
    let quiet = (bits >> vec4<u32>(16u)) | vec4<u32>(0x40u);
    let result = select(nearest, quiet, (bits & vec4<u32>(0x7fffffffu)) > vec4<u32>(0x7f800000u));
    return result.xz | (result.yw << vec2<u32>(16u));
}
