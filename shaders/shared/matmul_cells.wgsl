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
