// Online softmax of a block of scores, four rows by four keys: masks, row maxima, and weights relative to a running maximum.

fn row_max(block: mat4x4<f32>) -> vec4<f32> {
    let t = transpose(block);
    return max(max(t[0], t[1]), max(t[2], t[3]));
}

// Sets scores of keys that a row does not see to SCORE_FLOOR: keys from key_end on and, under the causal mask, keys after the row.
fn mask_scores(block: mat4x4<f32>, rows: vec4<u32>, keys: vec4<u32>, key_end: u32, causal: bool) -> mat4x4<f32> {
    let last = select(vec4<u32>(key_end), min(rows + 1u, vec4<u32>(key_end)), causal);
    let unseen = vec4<f32>(SCORE_FLOOR);
    return mat4x4<f32>(
        select(unseen, block[0], keys < vec4<u32>(last.x)),
        select(unseen, block[1], keys < vec4<u32>(last.y)),
        select(unseen, block[2], keys < vec4<u32>(last.z)),
        select(unseen, block[3], keys < vec4<u32>(last.w)),
    );
}

// 2^(score - top), 0 for unseen keys.
fn weights(block: mat4x4<f32>, top: vec4<f32>) -> mat4x4<f32> {
    return mat4x4<f32>(weight(block[0], top.x), weight(block[1], top.y), weight(block[2], top.z), weight(block[3], top.w));
}

fn weight(score: vec4<f32>, top: f32) -> vec4<f32> {
    return select(exp2(score - top), vec4<f32>(), score <= vec4<f32>(SCORE_FLOOR));
}
