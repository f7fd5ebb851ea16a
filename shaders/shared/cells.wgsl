// Rows of any width are read element by element, in f32 (`cell` is "scalar"); rows whose widths are multiples of 4, four elements
// at a time, as `format` has them ("vec4").

#if cell == "scalar"
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
#else
#include "elements.wgsl"

alias Cell = vec4<f32>;
alias Stored = Stored4;
const CELL: u32 = 4u; // elements of a cell

fn cell_sum(cell: Cell) -> f32 {
    return (cell.x + cell.y) + (cell.z + cell.w);
}
#endif
