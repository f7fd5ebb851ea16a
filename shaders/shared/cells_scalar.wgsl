// Rows of any width are read element by element.

alias Cell = f32;
const CELL: u32 = 1u; // elements of a cell

fn cell_sum(cell: Cell) -> f32 {
    return cell;
}
