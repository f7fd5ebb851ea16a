// Bindings of the factors of a product, and how their elements are read as f32. `left_format` is the element format of the left
// factor; `right_format` is the same or f32. Elements are read one at a time (`factors` is "scalar") or as vec4 ("vec4"), for which
// widths, windows and strides must be multiples of 4. A Word is what a binding is an array of.

#if left_format == "f16"
enable f16;

#endif
#if factors == "vec4"
#if left_format == "f32"
alias Word = vec4<f32>;

fn four(word: Word) -> vec4<f32> {
    return word;
}
#elif left_format == "f16"
alias Word = vec4<f16>;

fn four(word: Word) -> vec4<f32> {
    return vec4<f32>(word);
}
#elif left_format == "f16_packed"
alias Word = vec2<u32>;

fn four(word: Word) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(word.x), unpack2x16float(word.y));
}
#else
alias Word = vec2<u32>;

fn four(word: Word) -> vec4<f32> {
    return bitcast<vec4<f32>>(vec4<u32>(word.x << 16u, word.x & 0xffff0000u, word.y << 16u, word.y & 0xffff0000u));
}
#endif

@group(0) @binding(1) var<storage, read> a: array<Word>;
#if right_format == left_format
@group(0) @binding(2) var<storage, read> b: array<Word>;
#else
@group(0) @binding(2) var<storage, read> b: array<vec4<f32>>;
#endif

fn four_a(at: u32) -> vec4<f32> {
    return four(a[at]);
}

fn four_b(at: u32) -> vec4<f32> {
#if right_format == left_format
    return four(b[at]);
#else
    return b[at];
#endif
}
#else
#if left_format == "f32"
alias Word = f32;
const PER_WORD: u32 = 1u;

// Element i of an array, given its word i / PER_WORD.
fn element(word: Word, i: u32) -> f32 {
    return word;
}
#elif left_format == "f16"
alias Word = f16;
const PER_WORD: u32 = 1u;

// Element i of an array, given its word i / PER_WORD.
fn element(word: Word, i: u32) -> f32 {
    return f32(word);
}
#elif left_format == "f16_packed"
alias Word = u32;
const PER_WORD: u32 = 2u;

// Element i of an array, given its word i / PER_WORD.
fn element(word: Word, i: u32) -> f32 {
    return unpack2x16float(word >> (16u * (i % 2u))).x;
}
#else
alias Word = u32;
const PER_WORD: u32 = 2u;

// Element i of an array, given its word i / PER_WORD.
fn element(word: Word, i: u32) -> f32 {
    return bitcast<f32>((word >> (16u * (i % 2u))) << 16u);
}
#endif

@group(0) @binding(1) var<storage, read> a: array<Word>;
#if right_format == left_format
@group(0) @binding(2) var<storage, read> b: array<Word>;
#else
@group(0) @binding(2) var<storage, read> b: array<f32>;
#endif

fn load_a(row: u32, k: u32) -> f32 {
    let i = index_a(row, k);
    return element(a[i / PER_WORD], i);
}

fn load_b(k: u32, column: u32) -> f32 {
#if right_format == left_format
    let i = index_b(k, column);
    return element(b[i / PER_WORD], i);
#else
    return b[index_b(k, column)];
#endif
}
#endif
