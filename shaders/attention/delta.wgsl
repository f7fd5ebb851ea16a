// What the backward needs of each row and head beside its LSE: the mean of dout . v over all keys, which is dout . out.
// One invocation per row and head.

struct DeltaParams {
    num_places: u32, // rows x heads
    out_skip: u32, // elements of the bindings before the first of them: vec4 of out and dout
    lse_skip: u32,
    terms_skip: u32,
    first_workgroup: u32,
    grid_width: u32,
}

@group(0) @binding(0) var<uniform> params: DeltaParams;
@group(0) @binding(1) var<storage, read> out: array<Stored4>;
@group(0) @binding(2) var<storage, read> dout: array<Stored4>;
@group(0) @binding(3) var<storage, read> softmax_lse: array<f32>;
@group(0) @binding(4) var<storage, read_write> terms: array<vec2<f32>>;

@compute @workgroup_size(64)
fn delta(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
    let place = workgroup_number(group) * 64u + lane;
    if (place < params.num_places) {
        let first = params.out_skip + place * HEAD_DIM_VEC4;
        var sum = 0.0;
        for (var c = 0u; c < HEAD_DIM_VEC4; c++) {
            sum += dot(widen(out[first + c]), widen(dout[first + c]));
        }
        terms[params.terms_skip + place] = vec2<f32>(softmax_lse[params.lse_skip + place], sum);
    }
}
