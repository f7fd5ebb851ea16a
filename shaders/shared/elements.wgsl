// How activations lie in memory, as vec4, and what kernels compute with: f32. `format` is one of
//
//   f32
//   f16            on devices with SHADER_F16
//   f16_packed     two in a word, on any device
//   bf16_packed    two in a word: a bf16 is the upper half of an f32

#if format == "f32"
alias Stored4 = vec4<f32>;

fn widen(x: Stored4) -> vec4<f32> {
    return x;
}

fn narrow(x: vec4<f32>) -> Stored4 {
    return x;
}
#elif format == "bf16_packed"
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
#else
// The f16 nearest to each element, ties to even, as its bits. Beyond 65504 by half a step and more: infinity, as IEEE 754
// has it; a NaN stays one. In integers, because WGSL leaves to the driver which neighbour a conversion gives, and what
// pack2x16float gives beyond the largest f16.
fn f16_bits(x: vec4<f32>) -> vec4<u32> {
    let bits = bitcast<vec4<u32>>(x);
    let size = bits & vec4<u32>(0x7fffffffu);
    let normal = (size - 0x38000000u + 0xfffu + ((size >> vec4<u32>(13u)) & vec4<u32>(1u))) >> vec4<u32>(13u);
    // Below 2^-14 the result counts steps of 2^-24. A shift by 25 gives 0 for all that is smaller.
    let shift = vec4<u32>(126u) - clamp(size >> vec4<u32>(23u), vec4<u32>(101u), vec4<u32>(112u));
    let fraction = (size & vec4<u32>(0x7fffffu)) | vec4<u32>(0x800000u);
    let tie = (fraction >> shift) & vec4<u32>(1u);
    let subnormal = (fraction + (vec4<u32>(1u) << (shift - 1u)) - 1u + tie) >> shift;
    var result = select(subnormal, normal, size >= vec4<u32>(0x38800000u));
    result = select(result, vec4<u32>(0x7c00u), size >= vec4<u32>(0x477ff000u));
    result = select(result, vec4<u32>(0x7e00u), size > vec4<u32>(0x7f800000u));
    return result | ((bits >> vec4<u32>(16u)) & vec4<u32>(0x8000u));
}

#if format == "f16"
enable f16;

alias Stored4 = vec4<f16>;

fn widen(x: Stored4) -> vec4<f32> {
    return vec4<f32>(x);
}

fn narrow(x: vec4<f32>) -> Stored4 {
    let bits = f16_bits(x);
    // What is converted is an f16 already, so the driver has no choice.
    return vec4<f16>(vec4<f32>(unpack2x16float(bits.x | (bits.y << 16u)), unpack2x16float(bits.z | (bits.w << 16u))));
}
#else
alias Stored4 = vec2<u32>;

fn widen(x: Stored4) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(x.x), unpack2x16float(x.y));
}

fn narrow(x: vec4<f32>) -> Stored4 {
    let bits = f16_bits(x);
    return bits.xz | (bits.yw << vec2<u32>(16u));
}
#endif
#endif
