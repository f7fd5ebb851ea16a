// Rows of any width are read element by element, in f32.

alias Cell = f32;
alias Stored = f32;
const CELL: u32 = 1u; // elements of a cell

fn widen(x: Stored) -> Cell {
    return x;
}

fn narrow(x: Cell) -> Stored {
    return x;
}

fn cell_sum(cell: Cell) -> f32 {
    return cell;
}
