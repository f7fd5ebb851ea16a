// Rows whose widths are multiples of 4 are read four elements at a time (shared/storage_*.wgsl).

alias Cell = vec4<f32>;
alias Stored = Stored4;
const CELL: u32 = 4u; // elements of a cell

fn cell_sum(cell: Cell) -> f32 {
    return (cell.x + cell.y) + (cell.z + cell.w);
}
