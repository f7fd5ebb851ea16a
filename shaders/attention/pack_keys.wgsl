// Copies keys and values, or their gradients, between the tensors of tokens and packed keys (geometry.wgsl): to packed keys or, with
// `unpacks`, from them. In the tensors of tokens, the row of a key is that of the query at the same place. A workgroup copies 16 keys
// of a head.

#include "geometry.wgsl"

#if unpacks
@group(0) @binding(1) var<storage, read_write> first_of_tokens: array<Stored4>;
@group(0) @binding(2) var<storage, read_write> second_of_tokens: array<Stored4>;
@group(0) @binding(3) var<storage, read> first_packed: array<Stored4>;
@group(0) @binding(4) var<storage, read> second_packed: array<Stored4>;
#else
@group(0) @binding(1) var<storage, read> first_of_tokens: array<Stored4>;
@group(0) @binding(2) var<storage, read> second_of_tokens: array<Stored4>;
@group(0) @binding(3) var<storage, read_write> first_packed: array<Stored4>;
@group(0) @binding(4) var<storage, read_write> second_packed: array<Stored4>;
#endif

@compute @workgroup_size(64)
fn pack_keys(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let tile = locate_key_tile(workgroup, 16u);
    for (var i = lane; i < (tile.key_end - tile.key_begin) * HEAD_DIM_VEC4; i += 64u) {
        let key = tile.key_begin + i / HEAD_DIM_VEC4;
        let of_tokens = query_index(tile, key) + i % HEAD_DIM_VEC4;
        let packed = key_index(tile, key) + i % HEAD_DIM_VEC4;
#if unpacks
        first_of_tokens[of_tokens] = first_packed[packed];
        second_of_tokens[of_tokens] = second_packed[packed];
#else
        first_packed[packed] = first_of_tokens[of_tokens];
        second_packed[packed] = second_of_tokens[of_tokens];
#endif
    }
}
