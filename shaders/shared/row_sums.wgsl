// Rows of a matrix for kernels that take sums along them: a workgroup takes 8 rows, 8 lanes each.

const ROWS: u32 = 8u;
const LANES: u32 = 8u;

var<workgroup> partial: array<vec2<f32>, 64>;

// The sums over the lanes of each row, the same for all of them. Called by all threads: it holds barriers.
fn row_sums(index: u32, value: vec2<f32>) -> vec2<f32> {
    partial[index] = value;
    workgroupBarrier();
    let first = index / LANES * LANES;
    let a = (partial[first] + partial[first + 1u]) + (partial[first + 2u] + partial[first + 3u]);
    let b = (partial[first + 4u] + partial[first + 5u]) + (partial[first + 6u] + partial[first + 7u]);
    workgroupBarrier();
    return a + b;
}
