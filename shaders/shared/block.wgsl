// A block of scores or outputs: four rows by one vec4.

// block[i] += a[i] * b, where a[i] is row i of the left factor and b the four rows of the right one.
fn multiply_add(block: mat4x4<f32>, a: mat4x4<f32>, b: mat4x4<f32>) -> mat4x4<f32> {
    return mat4x4<f32>(weigh(a[0], b, block[0]), weigh(a[1], b, block[1]), weigh(a[2], b, block[2]), weigh(a[3], b, block[3]));
}

fn weigh(a: vec4<f32>, b: mat4x4<f32>, sum: vec4<f32>) -> vec4<f32> {
    let two = fma(vec4<f32>(a.y), b[1], fma(vec4<f32>(a.x), b[0], sum));
    return fma(vec4<f32>(a.w), b[3], fma(vec4<f32>(a.z), b[2], two));
}

// The same where a weight of 0 marks a key the row does not see, whose value may be a NaN.
fn multiply_add_seen(block: mat4x4<f32>, a: mat4x4<f32>, b: mat4x4<f32>) -> mat4x4<f32> {
    return mat4x4<f32>(weigh_seen(a[0], b, block[0]), weigh_seen(a[1], b, block[1]), weigh_seen(a[2], b, block[2]), weigh_seen(a[3], b, block[3]));
}

fn weigh_seen(a: vec4<f32>, b: mat4x4<f32>, sum: vec4<f32>) -> vec4<f32> {
    var total = select(fma(vec4<f32>(a.x), b[0], sum), sum, a.x == 0.0);
    total = select(fma(vec4<f32>(a.y), b[1], total), total, a.y == 0.0);
    total = select(fma(vec4<f32>(a.z), b[2], total), total, a.z == 0.0);
    return select(fma(vec4<f32>(a.w), b[3], total), total, a.w == 0.0);
}

// Multiplies row i by scale[i].
fn scale_rows(block: mat4x4<f32>, scale: vec4<f32>) -> mat4x4<f32> {
    return mat4x4<f32>(block[0] * scale.x, block[1] * scale.y, block[2] * scale.z, block[3] * scale.w);
}

fn row_max(block: mat4x4<f32>) -> vec4<f32> {
    let t = transpose(block);
    return max(max(t[0], t[1]), max(t[2], t[3]));
}

fn row_sum(block: mat4x4<f32>) -> vec4<f32> {
    let t = transpose(block);
    return (t[0] + t[1]) + (t[2] + t[3]);
}

// Scores of keys the row does not see become the floor: keys at key_end and beyond, and with causal those after the row.
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
