// Four neighbours in a row of c, one by one.
fn store_row(row: u32, column: u32, offset: u32, value: vec4<f32>) {
    store_cell(row, column, offset, value.x);
    store_cell(row, column + 1u, offset, value.y);
    store_cell(row, column + 2u, offset, value.z);
    store_cell(row, column + 3u, offset, value.w);
}
