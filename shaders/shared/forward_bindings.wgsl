@group(0) @binding(1) var<storage, read> q: array<Stored4>;
@group(0) @binding(2) var<storage, read> k: array<Stored4>;
@group(0) @binding(3) var<storage, read> v: array<Stored4>;
@group(0) @binding(4) var<storage, read_write> out: array<Stored4>;
@group(0) @binding(5) var<storage, read_write> softmax_state: array<vec2<f32>>;
