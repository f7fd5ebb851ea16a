//! Every kernel, read by a WGSL front end: no device.

mod barriers;
mod shaders;

use super::*;

#[test]
fn grids_fold_beyond_the_limit_of_a_dimension() {
    for n in [1, 7, 65_535, 65_536, 70_000, 1 << 20, u32::MAX - 131_072] {
        let [x, y] = fold_grid(n, 65_535).expect("fits");
        assert!(x <= 65_535 && y <= 65_535);
        assert!(u64::from(x) * u64::from(y) >= u64::from(n));
        assert!(u64::from(x) * u64::from(y) < u64::from(n) + u64::from(y));
    }
    assert_eq!(fold_grid(1 << 20, 1000), None);
}
