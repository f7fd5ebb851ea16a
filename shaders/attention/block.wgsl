// A block of scores or outputs: four rows by one vec4.

// block[i] += a[i] * b, where a[i] is row i of the left factor and b the four rows of the right one.
fn multiply_add(block: mat4x4<f32>, a: mat4x4<f32>, b: mat4x4<f32>) -> mat4x4<f32> {
    return mat4x4<f32>(weigh(a[0], b, block[0]), weigh(a[1], b, block[1]), weigh(a[2], b, block[2]), weigh(a[3], b, block[3]));
}

fn weigh(a: vec4<f32>, b: mat4x4<f32>, sum: vec4<f32>) -> vec4<f32> {
    let two = fma(vec4<f32>(a.y), b[1], fma(vec4<f32>(a.x), b[0], sum));
    return fma(vec4<f32>(a.w), b[3], fma(vec4<f32>(a.z), b[2], two));
}

// multiply_add for weights `a` where 0 marks a key that the row does not see. Such a key is left out, because its value may be NaN.
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

// The sum of each of the four rows.
fn row_sum(block: mat4x4<f32>) -> vec4<f32> {
    let t = transpose(block);
    return (t[0] + t[1]) + (t[2] + t[3]);
}
