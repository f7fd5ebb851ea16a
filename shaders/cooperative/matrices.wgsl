// Cooperative matrices of `size` x `size` elements: f16 factors, f32 sums. All lanes of a subgroup hold a matrix together, and none
// has access to its elements. Kernels load matrices from workgroup memory and store them there.
//
// Places and strides in workgroup memory count vec4 everywhere: a matrix begins at &f16s[at * VEC4], and its rows are stride * VEC4
// apart. Metal loads and stores matrices through pointers to scalars only; then `scalar_pointers` is set and the arrays hold
// scalars. The including kernel defines F16_VEC4S and F32_VEC4S, the numbers of vec4 in the two arrays.

enable f16;
enable wgpu_cooperative_matrix;

const SIZE: u32 = ${size}u;
alias Left = coop_mat${size}x${size}<f16, A>;
alias Right = coop_mat${size}x${size}<f16, B>;
alias Sum = coop_mat${size}x${size}<f32, C>;

#if scalar_pointers
const VEC4: u32 = 4u; // array elements in a vec4

var<workgroup> f16s: array<f16, 4u * F16_VEC4S>;
var<workgroup> f32s: array<f32, 4u * F32_VEC4S>;

fn put_f16(at: u32, x: vec4<f16>) {
    f16s[4u * at] = x.x;
    f16s[4u * at + 1u] = x.y;
    f16s[4u * at + 2u] = x.z;
    f16s[4u * at + 3u] = x.w;
}

fn put_f32(at: u32, x: vec4<f32>) {
    f32s[4u * at] = x.x;
    f32s[4u * at + 1u] = x.y;
    f32s[4u * at + 2u] = x.z;
    f32s[4u * at + 3u] = x.w;
}

fn get_f32(at: u32) -> vec4<f32> {
    return vec4<f32>(f32s[4u * at], f32s[4u * at + 1u], f32s[4u * at + 2u], f32s[4u * at + 3u]);
}
#else
const VEC4: u32 = 1u; // array elements in a vec4

var<workgroup> f16s: array<vec4<f16>, F16_VEC4S>;
var<workgroup> f32s: array<vec4<f32>, F32_VEC4S>;

fn put_f16(at: u32, x: vec4<f16>) {
    f16s[at] = x;
}

fn put_f32(at: u32, x: vec4<f32>) {
    f32s[at] = x;
}

fn get_f32(at: u32) -> vec4<f32> {
    return f32s[at];
}
#endif
