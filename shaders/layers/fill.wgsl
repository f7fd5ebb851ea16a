// Fills a range of 32-bit words with one value. Poisons buffers with NaN where the pool is asked to. One invocation writes 16
// words, 64 apart.

#include "workgroup.wgsl"

struct FillParams {
    first_word: u32, // words of the binding before the range
    num_words: u32, // words of the range
    value: u32,
    first_workgroup: u32, // number of the first workgroup of this part of the dispatch
    grid_width: u32, // workgroups along x
}

@group(0) @binding(0) var<uniform> params: FillParams;
@group(0) @binding(1) var<storage, read_write> words: array<u32>;

const WORKGROUP_SIZE: u32 = 64u;
const WORDS_PER_INVOCATION: u32 = 16u;

@compute @workgroup_size(WORKGROUP_SIZE)
fn fill(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
    let number = workgroup_number(group);
    let begin = number * WORKGROUP_SIZE * WORDS_PER_INVOCATION + lane;
    for (var i = 0u; i < WORDS_PER_INVOCATION; i++) {
        let word = begin + i * WORKGROUP_SIZE;
        if word < params.num_words {
            words[params.first_word + word] = params.value;
        }
    }
}
