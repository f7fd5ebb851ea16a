// How similar the states of all tiles are to one tile's, as colours. Row 0 of a state is the CLS token; tile t is row t + 1.

struct Rows {
    // Number of the first row that is bound.
    first: u32,
    // Words of a row.
    words: u32,
    // Whether a word holds two f16, or one f32.
    is_half: u32,
}

@group(0) @binding(0) var<uniform> rows: Rows;
@group(0) @binding(1) var<storage, read> states: array<u32>;
@group(0) @binding(2) var<storage, read> one: array<u32>;
@group(0) @binding(3) var<storage, read_write> cosines: array<f32>;

fn elements(word: u32) -> vec2f {
    if rows.is_half != 0u {
        return unpack2x16float(word);
    }
    return vec2f(bitcast<f32>(word), 0.0);
}

var<workgroup> products: array<vec3f, 64>;

// A workgroup for each row: the products of the row with the one, with itself, and of the one with itself.
@compute @workgroup_size(64)
fn compare(@builtin(workgroup_id) row: vec3u, @builtin(local_invocation_index) lane: u32) {
    var sum = vec3f();
    for (var word = lane; word < rows.words; word += 64u) {
        let a = elements(states[row.x * rows.words + word]);
        let b = elements(one[word]);
        sum += vec3f(dot(a, b), dot(a, a), dot(b, b));
    }
    products[lane] = sum;
    for (var stride = 32u; stride > 0u; stride /= 2u) {
        workgroupBarrier();
        if lane < stride {
            products[lane] += products[lane + stride];
        }
    }
    if lane == 0u {
        let length = sqrt(max(products[0].y, 1e-30)) * sqrt(max(products[0].z, 1e-30));
        cosines[rows.first + row.x] = products[0].x / length;
    }
}

@group(0) @binding(4) var<storage, read> compared: array<f32>;
@group(0) @binding(5) var<storage, read_write> measured: array<f32, 2>;

var<workgroup> sums: array<f32, 256>;

fn sum_of(value: f32, lane: u32) -> f32 {
    sums[lane] = value;
    for (var stride = 128u; stride > 0u; stride /= 2u) {
        workgroupBarrier();
        if lane < stride {
            sums[lane] += sums[lane + stride];
        }
    }
    let sum = workgroupUniformLoad(&sums[0]);
    return sum;
}

// The ends of the scale: two standard deviations around the mean of all tiles. A few far outside would leave the rest one colour
// on a scale from the least to the most.
@compute @workgroup_size(256)
fn measure(@builtin(local_invocation_index) lane: u32) {
    let tiles = arrayLength(&compared) - 1u;
    var sum = 0.0;
    for (var tile = lane; tile < tiles; tile += 256u) {
        sum += compared[tile + 1u];
    }
    let mean = sum_of(sum, lane) / f32(tiles);
    var squares = 0.0;
    for (var tile = lane; tile < tiles; tile += 256u) {
        let from_mean = compared[tile + 1u] - mean;
        squares += from_mean * from_mean;
    }
    let deviation = sqrt(sum_of(squares, lane) / f32(tiles));
    if lane == 0u {
        measured[0] = mean - 2.0 * deviation;
        measured[1] = mean + 2.0 * deviation;
    }
}

@group(0) @binding(6) var<storage, read> scale: array<f32, 2>;
@group(0) @binding(7) var<storage, read> tile_of_cell: array<u32>;
@group(0) @binding(8) var picture: texture_storage_2d<rgba8unorm, write>;

// A pixel for each cell of the slide. Cells without a tile stay transparent.
@compute @workgroup_size(8, 8)
fn paint(@builtin(global_invocation_id) cell: vec3u) {
    let size = textureDimensions(picture);
    if cell.x >= size.x || cell.y >= size.y {
        return;
    }
    let tile = tile_of_cell[cell.y * size.x + cell.x];
    if tile == NONE {
        textureStore(picture, cell.xy, vec4f());
        return;
    }
    let range = max(scale[1] - scale[0], 1e-30);
    let part = clamp((compared[tile + 1u] - scale[0]) / range, 0.0, 1.0);
    let at = part * f32(STEPS);
    let first = min(u32(at), STEPS - 1u);
    let colour = mix(ramp[first], ramp[first + 1u], at - f32(first));
    textureStore(picture, cell.xy, vec4f(colour / 255.0, 1.0));
}
