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
