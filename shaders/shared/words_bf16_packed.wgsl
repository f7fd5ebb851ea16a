// Elements read one by one: bf16, two in a word.

alias Word = u32;
const PER_WORD: u32 = 2u;

// Element i of an array, given its word i / PER_WORD.
fn element(word: Word, i: u32) -> f32 {
    return bitcast<f32>((word >> (16u * (i % 2u))) << 16u);
}
