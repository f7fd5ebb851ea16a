// out = x_scale * keep * x + y_scale * y: sums, residuals, scalings and dropout. keep is 0 for dropped elements and 1 for others;
// x_scale includes the factor 1 / (1 - p) of dropout. Random numbers follow from a counter, so that the backward of a dropout draws
// the same ones. One invocation computes one vector.

#include "vector_width.wgsl"
#include "workgroup.wgsl"

struct ScaledAddParams {
    count: u32, // vectors to compute
    x_skip: u32, // vectors of the binding of x before the first one used
    y_skip: u32, // the same for y
    out_skip: u32, // the same for out
    x_scale: f32,
    y_scale: f32,
    mode: u32, // what y is (Y_ constants): nothing, the old out, or its own binding
    drop_below: u32, // elements whose draw is below this are dropped; 0: none are. Only for vectors of one element
    seed_low: u32, // seed of 64 bits
    seed_high: u32,
    first_low: u32, // 64 bits: number of element 0 among all elements drawn with this seed
    first_high: u32,
    first_workgroup: u32, // number of the first workgroup of this part of the dispatch
    grid_width: u32, // workgroups along x
}

const Y_NONE: u32 = 0u;
const Y_OUT: u32 = 1u;
const Y_BOUND: u32 = 2u;

@group(0) @binding(0) var<uniform> params: ScaledAddParams;
@group(0) @binding(1) var<storage, read> x: array<Stored>;
@group(0) @binding(2) var<storage, read> y: array<Stored>;
@group(0) @binding(3) var<storage, read_write> out: array<Stored>;

// 32 random bits for element i, from the seed and a counter of 64 bits each: rounds of the pcg4d hash (Jarzynski and Olano, "Hash
// functions for GPU rendering", JCGT 2020).
fn draw(i: u32) -> u32 {
    let low = params.first_low + i;
    let high = params.first_high + select(0u, 1u, low < i);
    var v = vec4<u32>(low, high, params.seed_low, params.seed_high) * 1664525u + 1013904223u;
    v.x += v.y * v.w;
    v.y += v.z * v.x;
    v.z += v.x * v.y;
    v.w += v.y * v.z;
    v ^= v >> vec4<u32>(16u);
    v.x += v.y * v.w;
    v.y += v.z * v.x;
    v.z += v.x * v.y;
    v.w += v.y * v.z;
    return v.w ^ (v.x >> 16u);
}

@compute @workgroup_size(64)
fn scaled_add(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = workgroup_number(group) * 64u + lane;
    if (i < params.count) {
        let at = params.out_skip + i;
        var result = params.x_scale * widen(x[params.x_skip + i]);
        if (params.drop_below > 0u && draw(i) < params.drop_below) {
            result = Vector();
        }
        if (params.mode == Y_OUT) {
            result = fma(Vector(params.y_scale), widen(out[at]), result);
        } else if (params.mode == Y_BOUND) {
            result = fma(Vector(params.y_scale), widen(y[params.y_skip + i]), result);
        }
        out[at] = narrow(result);
    }
}
