// The backward on CPU adapters that turn a load at an address all lanes share into one scalar load and a broadcast.
//
// Each lane owns four vectors of each of two operands (rows: q and dout; keys: k and v) and their gradients, and all lanes
// meet the same four staged vectors of the other two in a step:
//
//   s = own_a . staged_a    dp = own_b . staged_b    sum_a += ds * staged_a    sum_b += p * staged_b
//
// Functions of a column c have a form `..._each()` that calls them for all columns, written by src/kernel/source.rs.
// A step is straight-line code in which every index is a constant. With a loop over what is staged, compilers keep each of
// its hundreds of addresses, and on the stack. src/kernel/backward.rs says what else was tried.
// Prelude: HEAD_DIM_VEC4, LANES (the adapter's vector width in f32), LANE_GROUPS (groups of lanes that share the staged).

const THREADS: u32 = LANES * LANE_GROUPS;
const SIDE: u32 = 4u * THREADS; // rows, or keys, of a workgroup: a lane's are THREADS apart
const STAGED: u32 = 4u;

alias Vector = array<vec4<f32>, HEAD_DIM_VEC4>;

var<workgroup> staged_a: array<Vector, STAGED>;
var<workgroup> staged_b: array<Vector, STAGED>;
// The last step, counted from 1, that staged a NaN or an infinity.
var<workgroup> last_not_finite: atomic<u32>;

var<private> own_a: array<Vector, 4>;
var<private> own_b: array<Vector, 4>;
var<private> sum_a: array<Vector, 4>;
var<private> sum_b: array<Vector, 4>;
// For each owned vector, those of the four staged.
var<private> s: array<vec4<f32>, 4>;
var<private> dp: array<vec4<f32>, 4>;
var<private> p: array<vec4<f32>, 4>;
var<private> ds: array<vec4<f32>, 4>;
// For each owned vector, its first element in a binding, and whether it exists.
var<private> places: vec4<u32>;
var<private> exists: vec4<bool>;
// Of sums one by one.
var<private> item: u32; // the staged vector
var<private> p_item: vec4<f32>; // its weights
var<private> ds_item: vec4<f32>;

fn dots(own: vec4<f32>, a: vec4<f32>, b: vec4<f32>, c: vec4<f32>, d: vec4<f32>, sum: vec4<f32>) -> vec4<f32> {
    return vec4<f32>(dot_add(own, a, sum.x), dot_add(own, b, sum.y), dot_add(own, c, sum.z), dot_add(own, d, sum.w));
}

fn dot_add(a: vec4<f32>, b: vec4<f32>, sum: f32) -> f32 {
    return fma(a.w, b.w, fma(a.z, b.z, fma(a.y, b.y, fma(a.x, b.x, sum))));
}

fn weigh(w: vec4<f32>, a: vec4<f32>, b: vec4<f32>, c: vec4<f32>, d: vec4<f32>, sum: vec4<f32>) -> vec4<f32> {
    let two = fma(vec4<f32>(w.y), b, fma(vec4<f32>(w.x), a, sum));
    return fma(vec4<f32>(w.w), d, fma(vec4<f32>(w.z), c, two));
}

fn add_products_a(c: u32) {
    let a0 = staged_a[0][c];
    let a1 = staged_a[1][c];
    let a2 = staged_a[2][c];
    let a3 = staged_a[3][c];
    s[0] = dots(own_a[0][c], a0, a1, a2, a3, s[0]);
    s[1] = dots(own_a[1][c], a0, a1, a2, a3, s[1]);
    s[2] = dots(own_a[2][c], a0, a1, a2, a3, s[2]);
    s[3] = dots(own_a[3][c], a0, a1, a2, a3, s[3]);
}

fn add_products_b(c: u32) {
    let b0 = staged_b[0][c];
    let b1 = staged_b[1][c];
    let b2 = staged_b[2][c];
    let b3 = staged_b[3][c];
    dp[0] = dots(own_b[0][c], b0, b1, b2, b3, dp[0]);
    dp[1] = dots(own_b[1][c], b0, b1, b2, b3, dp[1]);
    dp[2] = dots(own_b[2][c], b0, b1, b2, b3, dp[2]);
    dp[3] = dots(own_b[3][c], b0, b1, b2, b3, dp[3]);
}

fn add_to_a(c: u32) {
    let a0 = staged_a[0][c];
    let a1 = staged_a[1][c];
    let a2 = staged_a[2][c];
    let a3 = staged_a[3][c];
    sum_a[0][c] = weigh(ds[0], a0, a1, a2, a3, sum_a[0][c]);
    sum_a[1][c] = weigh(ds[1], a0, a1, a2, a3, sum_a[1][c]);
    sum_a[2][c] = weigh(ds[2], a0, a1, a2, a3, sum_a[2][c]);
    sum_a[3][c] = weigh(ds[3], a0, a1, a2, a3, sum_a[3][c]);
}

fn add_to_b(c: u32) {
    let b0 = staged_b[0][c];
    let b1 = staged_b[1][c];
    let b2 = staged_b[2][c];
    let b3 = staged_b[3][c];
    sum_b[0][c] = weigh(p[0], b0, b1, b2, b3, sum_b[0][c]);
    sum_b[1][c] = weigh(p[1], b0, b1, b2, b3, sum_b[1][c]);
    sum_b[2][c] = weigh(p[2], b0, b1, b2, b3, sum_b[2][c]);
    sum_b[3][c] = weigh(p[3], b0, b1, b2, b3, sum_b[3][c]);
}

// A weight of 0 marks a pair that does not see each other, whose vector may hold a NaN.
fn weigh_seen(w: f32, vector: vec4<f32>, sum: vec4<f32>) -> vec4<f32> {
    return select(fma(vec4<f32>(w), vector, sum), sum, w == 0.0);
}

fn add_item_to_a(c: u32) {
    let a = staged_a[item][c];
    sum_a[0][c] = weigh_seen(ds_item.x, a, sum_a[0][c]);
    sum_a[1][c] = weigh_seen(ds_item.y, a, sum_a[1][c]);
    sum_a[2][c] = weigh_seen(ds_item.z, a, sum_a[2][c]);
    sum_a[3][c] = weigh_seen(ds_item.w, a, sum_a[3][c]);
}

fn add_item_to_b(c: u32) {
    let b = staged_b[item][c];
    sum_b[0][c] = weigh_seen(p_item.x, b, sum_b[0][c]);
    sum_b[1][c] = weigh_seen(p_item.y, b, sum_b[1][c]);
    sum_b[2][c] = weigh_seen(p_item.z, b, sum_b[2][c]);
    sum_b[3][c] = weigh_seen(p_item.w, b, sum_b[3][c]);
}

// Rows without a query, and those beyond the tile, have none.
fn find_queries(tile: Tile, rows: vec4<u32>) {
    exists = rows < vec4<u32>(min(tile.row_end, tile.real_rows));
    places = select(vec4<u32>(), vec4<u32>(query_index(tile, rows.x), query_index(tile, rows.y), query_index(tile, rows.z),
        query_index(tile, rows.w)), exists);
}

fn find_outputs(tile: Tile, rows: vec4<u32>) {
    exists = rows < vec4<u32>(tile.row_end);
    places = select(vec4<u32>(), vec4<u32>(output_index(output_place(tile, rows.x)), output_index(output_place(tile, rows.y)),
        output_index(output_place(tile, rows.z)), output_index(output_place(tile, rows.w))), exists);
}

fn find_keys(tile: Tile, keys: vec4<u32>) {
    exists = keys < vec4<u32>(tile.key_end);
    places = select(vec4<u32>(), vec4<u32>(key_index(tile, keys.x), key_index(tile, keys.y), key_index(tile, keys.z),
        key_index(tile, keys.w)), exists);
}

// Vectors that do not exist are zeros.
fn load_own_a(c: u32) {
    own_a[0][c] = select(vec4<f32>(), load_a(places.x + c), exists.x);
    own_a[1][c] = select(vec4<f32>(), load_a(places.y + c), exists.y);
    own_a[2][c] = select(vec4<f32>(), load_a(places.z + c), exists.z);
    own_a[3][c] = select(vec4<f32>(), load_a(places.w + c), exists.w);
}

fn load_own_b(c: u32) {
    own_b[0][c] = select(vec4<f32>(), load_b(places.x + c), exists.x);
    own_b[1][c] = select(vec4<f32>(), load_b(places.y + c), exists.y);
    own_b[2][c] = select(vec4<f32>(), load_b(places.z + c), exists.z);
    own_b[3][c] = select(vec4<f32>(), load_b(places.w + c), exists.w);
}

fn store_sums(c: u32) {
    if (exists.x) { store(places.x + c, sum_a[0][c], sum_b[0][c]); }
    if (exists.y) { store(places.y + c, sum_a[1][c], sum_b[1][c]); }
    if (exists.z) { store(places.z + c, sum_a[2][c], sum_b[2][c]); }
    if (exists.w) { store(places.w + c, sum_a[3][c], sum_b[3][c]); }
}

fn is_finite(value: vec4<f32>) -> bool {
    return all((bitcast<vec4<u32>>(value) & vec4<u32>(0x7f800000u)) != vec4<u32>(0x7f800000u));
}

fn stage_pair(place: u32, column: u32, a: vec4<f32>, b: vec4<f32>, number: u32) {
    staged_a[place][column] = a;
    staged_b[place][column] = b;
    if (!is_finite(a) || !is_finite(b)) {
        atomicStore(&last_not_finite, number);
    }
}

// s and dp of the lane's vectors with those staged.
fn products() {
    s = array<vec4<f32>, 4>();
    dp = array<vec4<f32>, 4>();
    add_products_a_each();
    // Shorter blocks compile faster; this and the next keep compilers from holding on to all that was loaded, for the sums.
    workgroupBarrier();
    add_products_b_each();
    workgroupBarrier();
}

// Adds step number `number` to the sums: as it is where all staged vectors are finite, because then pairs that do not see
// each other add 0; else only those that do.
fn add_sums(number: u32, with_b: bool) {
    if (atomicLoad(&last_not_finite) != number) {
        add_to_a_each();
        if (with_b) {
            add_to_b_each();
        }
    } else {
        for (item = 0u; item < STAGED; item++) {
            ds_item = vec4<f32>(ds[0].x, ds[1].x, ds[2].x, ds[3].x);
            ds = array<vec4<f32>, 4>(ds[0].yzwx, ds[1].yzwx, ds[2].yzwx, ds[3].yzwx);
            add_item_to_a_each();
            if (with_b) {
                p_item = vec4<f32>(p[0].x, p[1].x, p[2].x, p[3].x);
                p = array<vec4<f32>, 4>(p[0].yzwx, p[1].yzwx, p[2].yzwx, p[3].yzwx);
                add_item_to_b_each();
            }
        }
    }
}
