// Elements of rows whose widths are multiples of 4, read in fours: f16, on devices with SHADER_F16.

alias Word = vec4<f16>;

fn four(word: Word) -> vec4<f32> {
    return vec4<f32>(word);
}
