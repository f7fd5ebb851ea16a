// Elements read one by one: f32.

alias Word = f32;
const PER_WORD: u32 = 1u;

// Element i of an array, given its word i / PER_WORD.
fn element(word: Word, i: u32) -> f32 {
    return word;
}
