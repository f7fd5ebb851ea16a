// Elements of rows whose widths are multiples of 4, read in fours: f16, on devices with SHADER_F16.

alias Word = vec4<f16>;
const PER_WORD: u32 = 4u;

fn four(word: Word) -> vec4<f32> {
    return vec4<f32>(word);
}

// Element i of an array, given its word i / PER_WORD.
fn element(word: Word, i: u32) -> f32 {
    return f32(word[i % 4u]);
}
