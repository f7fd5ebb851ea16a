// Sums along the rows of a matrix: a workgroup of 64 threads takes 8 rows, with 8 lanes for each.

const ROWS: u32 = 8u;
const LANES: u32 = 8u;

var<workgroup> partial: array<vec2<f32>, 64>;

// Sums `value` over the 8 lanes of each row; all lanes get the result. All threads call it: it holds barriers.
fn row_sums(index: u32, value: vec2<f32>) -> vec2<f32> {
    partial[index] = value;
    workgroupBarrier();
    let first = index / LANES * LANES;
    let a = (partial[first] + partial[first + 1u]) + (partial[first + 2u] + partial[first + 3u]);
    let b = (partial[first + 4u] + partial[first + 5u]) + (partial[first + 6u] + partial[first + 7u]);
    workgroupBarrier();
    return a + b;
}
