// Rows whose widths are multiples of 4 are read four elements at a time.

alias Cell = vec4<f32>;
const CELL: u32 = 4u; // elements of a cell

fn cell_sum(cell: Cell) -> f32 {
    return (cell.x + cell.y) + (cell.z + cell.w);
}
