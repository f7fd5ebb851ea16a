// How many elements of a row a kernel takes at a time. With `width` "scalar": one f32, for rows of any width. With "vec4": four
// elements of `format`, for rows whose width is a multiple of 4.

#if width == "scalar"
alias Vector = f32;
alias Stored = f32;
const VECTOR_WIDTH: u32 = 1u; // elements of a vector

fn widen(x: Stored) -> Vector {
    return x;
}

fn narrow(x: Vector) -> Stored {
    return x;
}

fn vector_sum(x: Vector) -> f32 {
    return x;
}
#else
#include "elements.wgsl"

alias Vector = vec4<f32>;
alias Stored = Stored4;
const VECTOR_WIDTH: u32 = 4u; // elements of a vector

fn vector_sum(x: Vector) -> f32 {
    return (x.x + x.y) + (x.z + x.w);
}
#endif
