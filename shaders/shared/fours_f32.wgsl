// Elements of rows whose widths are multiples of 4, read in fours: f32.

alias Word = vec4<f32>;

fn four(word: Word) -> vec4<f32> {
    return word;
}
