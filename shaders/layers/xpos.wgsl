// Rotates pairs of elements by their position and scales them (xPos), in place.
//
//   (a, b) -> scale (a cos - b sin, b cos + a sin)    scale = zeta^(+-(position - centre) / base)
//
// A position is a multiple of 256 plus a rest, and its angle is the sum of the angles of both. So two small tables of rotations, a
// coarse and a fine one, serve any length; both are made in double precision, and a complex multiplication combines them. One
// invocation rotates a quad: four elements, which are two pairs.

#include "elements.wgsl"
#include "workgroup.wgsl"

struct XposParams {
    num_places: u32, // rows times heads
    num_heads: u32,
    quads: u32, // quads of a head
    seq_len: u32, // rows of a batch item
    first_row: u32, // first row of the window
    skip: u32, // quads of the binding of x before the window
    coarse_begin: u32, // row of the table with the first coarse rotation; the fine ones come before
    first_position: u32, // position of row 0 of each item
    block: u32, // positions that share a centre
    centre: u32, // place of the centre in its block
    scale_per_position: f32, // 1 / base for queries, -1 / base for keys
    inverse: u32, // 1: rotate back, for gradients
    first_workgroup: u32, // number of the first workgroup of this part of the dispatch
    grid_width: u32, // workgroups along x
}

@group(0) @binding(0) var<uniform> params: XposParams;
// The table: a row for each rotation, 256 fine ones, then the coarse ones. A row has cosine and sine for each pair, two pairs in a vec4.
@group(0) @binding(1) var<storage, read> rotations: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> x: array<Stored4>;

@compute @workgroup_size(64)
fn xpos(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let number = workgroup_number(group);
    let item = number * 64u + lane;
    let place = item / params.quads;
    let quad = item % params.quads;
    if (place < params.num_places) {
        let row = params.first_row + place / params.num_heads;
        let position = params.first_position + row % params.seq_len;
        let fine = rotations[position % 256u * params.quads + quad];
        let coarse = rotations[(params.coarse_begin + position / 256u) * params.quads + quad];
        let cosine = coarse.xz * fine.xz - coarse.yw * fine.yw;
        var sine = coarse.yw * fine.xz + coarse.xz * fine.yw;
        if (params.inverse != 0u) {
            sine = -sine;
        }
        let head_dim = f32(4u * params.quads);
        let first = vec2<f32>(f32(4u * quad), f32(4u * quad + 2u));
        let zeta = (first + 0.4 * head_dim) / (1.4 * head_dim);
        let from_centre = f32(i32(position % params.block) - i32(params.centre));
        let scale = exp2(log2(zeta) * (from_centre * params.scale_per_position));
        let at = params.skip + item;
        let old = widen(x[at]);
        let a = scale * (old.xz * cosine - old.yw * sine);
        let b = scale * (old.yw * cosine + old.xz * sine);
        x[at] = narrow(vec4<f32>(a.x, b.x, a.y, b.y));
    }
}
