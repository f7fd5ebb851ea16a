// Four neighbours in a row of c at once.
fn store_row(row: u32, column: u32, offset: u32, value: vec4<f32>) {
    store_cell(row, column, offset, value);
}
