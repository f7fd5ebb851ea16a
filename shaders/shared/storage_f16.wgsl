// How elements are stored, in fours: f16, on devices with SHADER_F16.

alias Stored4 = vec4<f16>;

fn widen(x: Stored4) -> vec4<f32> {
    return vec4<f32>(x);
}

fn narrow(x: vec4<f32>) -> Stored4 {
    let bits = f16_bits(x);
    // What is converted is an f16 already, so the driver has no choice.
    return vec4<f16>(vec4<f32>(unpack2x16float(bits.x | (bits.y << 16u)), unpack2x16float(bits.z | (bits.w << 16u))));
}
