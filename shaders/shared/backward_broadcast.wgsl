// On CPUs whose driver loads once per lane, whether the address is shared or not (lavapipe before Mesa 26): each of eight
// lanes loads one staged vector, and subgroup operations hand it to the other seven.

var<private> own_staged: u32; // the staged vector that this lane loads: its own number in the subgroup

fn begin_sharing() {
    own_staged = subgroupExclusiveAdd(1u);
}

fn add_products_a(c: u32) {
    let own = staged_a[own_staged * HEAD_DIM_VEC4 + c];
    add_four_products_a(0u, c, first_four(own));
    add_four_products_a(1u, c, last_four(own));
}

fn add_products_b(c: u32) {
    let own = staged_b[own_staged * HEAD_DIM_VEC4 + c];
    add_four_products_b(0u, c, first_four(own));
    add_four_products_b(1u, c, last_four(own));
}

fn add_to_a(c: u32) {
    let own = staged_a[own_staged * HEAD_DIM_VEC4 + c];
    add_four_to_a(0u, c, first_four(own));
    add_four_to_a(1u, c, last_four(own));
}

fn add_to_b(c: u32) {
    let own = staged_b[own_staged * HEAD_DIM_VEC4 + c];
    add_four_to_b(0u, c, first_four(own));
    add_four_to_b(1u, c, last_four(own));
}
