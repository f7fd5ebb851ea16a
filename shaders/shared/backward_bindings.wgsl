@group(0) @binding(1) var<storage, read> q: array<Stored4>;
@group(0) @binding(2) var<storage, read> k: array<Stored4>;
@group(0) @binding(3) var<storage, read> v: array<Stored4>;
@group(0) @binding(4) var<storage, read> dout: array<Stored4>;
