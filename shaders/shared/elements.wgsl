// Activations in memory, four elements at a time: `widen` turns them into f32, in which kernels compute, and `narrow` turns f32
// back. `format` is one of
//
//   f32
//   f16            on devices with SHADER_F16
//   f16_packed     two f16 in a 32-bit word, on any device
//   bf16_packed    two bf16 in a 32-bit word; a bf16 is the upper half of an f32

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

// Rounds to the nearest, ties to even; a NaN stays a NaN.
fn narrow(x: vec4<f32>) -> Stored4 {
    let bits = bitcast<vec4<u32>>(x);
    let nearest = (bits + 0x7fffu + ((bits >> vec4<u32>(16u)) & vec4<u32>(1u))) >> vec4<u32>(16u);
    let quiet = (bits >> vec4<u32>(16u)) | vec4<u32>(0x40u);
    let result = select(nearest, quiet, (bits & vec4<u32>(0x7fffffffu)) > vec4<u32>(0x7f800000u));
    return result.xz | (result.yw << vec2<u32>(16u));
}
#else
// The bits of the f16 nearest to each element, ties to even. Numbers beyond 65504 by half a step or more become infinity, as in
// IEEE 754; a NaN stays a NaN. Computed with integers, because WGSL leaves it to the driver which of the two neighbours a
// conversion gives, and what pack2x16float gives beyond the largest f16.
fn f16_bits(x: vec4<f32>) -> vec4<u32> {
    let bits = bitcast<vec4<u32>>(x);
    let size = bits & vec4<u32>(0x7fffffffu);
    let normal = (size - 0x38000000u + 0xfffu + ((size >> vec4<u32>(13u)) & vec4<u32>(1u))) >> vec4<u32>(13u);
    // Below 2^-14 the result is subnormal: a number of steps of 2^-24. A shift by 25 gives 0 for all smaller numbers.
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
    // The numbers are f16 values already, so this conversion rounds nothing.
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
