// How elements are stored, in fours: f16, two in a word, on any device.

alias Stored4 = vec2<u32>;

fn widen(x: Stored4) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(x.x), unpack2x16float(x.y));
}

fn narrow(x: vec4<f32>) -> Stored4 {
    let bits = f16_bits(x);
    return bits.xz | (bits.yw << vec2<u32>(16u));
}
