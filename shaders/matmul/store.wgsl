// Stores four neighbours in a row of c, vector by vector.

// Finishes a vector of c and writes it, or adds it to what is there.
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
