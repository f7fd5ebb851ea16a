// Elements of rows whose widths are multiples of 4, read in fours: f16, two in a word, on any device.

alias Word = vec2<u32>;

fn four(word: Word) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(word.x), unpack2x16float(word.y));
}
