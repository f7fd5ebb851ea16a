// Elements read one by one: f16, two in a word.

alias Word = u32;
const PER_WORD: u32 = 2u;

// Element i of an array, given its word i / PER_WORD.
fn element(word: Word, i: u32) -> f32 {
    return unpack2x16float(word >> (16u * (i % 2u))).x;
}
