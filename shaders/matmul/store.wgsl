// Stores sums to c, with bias, activation and residual.

// Writes a vector of c, or adds it to the old content of c. `column` counts elements, `offset` vectors (of a split).
fn store_vector(row: u32, column: u32, offset: u32, value: Vector) {
    if (row < params.rows && column < params.columns) {
        let at = row * params.c_stride + column / VECTOR_WIDTH;
        let index = params.c_skip + offset + at;
        var result = finish(value, at, column / VECTOR_WIDTH);
        if (has_flag(FLAG_ACCUMULATE)) {
            result += widen(c[index]);
        }
        c[index] = narrow(result);
    }
}

// Writes four neighbouring elements of a row of c.
fn store_row(row: u32, column: u32, offset: u32, value: vec4<f32>) {
#if width == "scalar"
    store_vector(row, column, offset, value.x);
    store_vector(row, column + 1u, offset, value.y);
    store_vector(row, column + 2u, offset, value.z);
    store_vector(row, column + 3u, offset, value.w);
#else
    store_vector(row, column, offset, value);
#endif
}
