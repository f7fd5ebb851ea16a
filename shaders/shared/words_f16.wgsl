// Elements read one by one: f16, on devices with SHADER_F16.

alias Word = f16;
const PER_WORD: u32 = 1u;

// Element i of an array, given its word i / PER_WORD.
fn element(word: Word, i: u32) -> f32 {
    return f32(word);
}
