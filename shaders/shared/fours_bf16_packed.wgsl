// Elements of rows whose widths are multiples of 4, read in fours: bf16, two in a word.

alias Word = vec2<u32>;

fn four(word: Word) -> vec4<f32> {
    return bitcast<vec4<f32>>(vec4<u32>(word.x << 16u, word.x & 0xffff0000u, word.y << 16u, word.y & 0xffff0000u));
}
