// Stores four neighbours in a row of c, cell by cell.

// Finishes a cell of c and writes it, or adds it to what is there.
fn store_cell(row: u32, column: u32, offset: u32, value: Cell) {
    if (row < params.rows && column < params.columns) {
        let at = row * params.c_stride + column / CELL;
        let index = params.c_skip + offset + at;
        var result = finish(value, at, column / CELL);
        if (has_flag(FLAG_ACCUMULATE)) {
            result += widen(c[index]);
        }
        c[index] = narrow(result);
    }
}

fn store_row(row: u32, column: u32, offset: u32, value: vec4<f32>) {
#if cell == "scalar"
    store_cell(row, column, offset, value.x);
    store_cell(row, column + 1u, offset, value.y);
    store_cell(row, column + 2u, offset, value.z);
    store_cell(row, column + 3u, offset, value.w);
#else
    store_cell(row, column, offset, value);
#endif
}
