// How elements are stored, in fours: f32.

alias Stored4 = vec4<f32>;

fn widen(x: Stored4) -> vec4<f32> {
    return x;
}

fn narrow(x: vec4<f32>) -> Stored4 {
    return x;
}
