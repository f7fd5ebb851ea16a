// Elements of rows whose widths are multiples of 4, read in fours: f16, two in a word, on any device.

alias Word = vec2<u32>;
const PER_WORD: u32 = 4u;

fn four(word: Word) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(word.x), unpack2x16float(word.y));
}

// Element i of an array, given its word i / PER_WORD.
fn element(word: Word, i: u32) -> f32 {
    return four(word)[i % 4u];
}
