//! Size classes: eight to a doubling.
//!
//! Class sizes are `2^k * (8 + i) / 8` for `i` in `0..8`, from 256 bytes up. The worst waste is 12.5 % of what was asked for
//! (one byte more than a class), the mean over the sizes of a doubling 4.4 %. Two to a doubling (as vello has) waste up to
//! 50 %; sixteen would halve the waste but double the number of lists that a request can miss in.

/// Smallest class, in bytes: WebGPU's default alignment of buffer bindings.
pub const MIN_CLASS_BYTES: u64 = 256;

/// Classes in one doubling, as a power of two.
const CLASSES_PER_DOUBLING_LOG2: u32 = 3;

/// Bytes of the smallest class that holds `bytes`, but never more than `max_bytes` (a multiple of 4): a request that a
/// device allows must not become illegal by rounding up. The caller has checked `bytes <= max_bytes`.
pub fn class_bytes(bytes: u64, max_bytes: u64) -> u64 {
    if bytes <= MIN_CLASS_BYTES {
        return MIN_CLASS_BYTES.min(max_bytes);
    }
    // The step between classes in the doubling that `bytes` ends in: floor(log2(bytes - 1)) is the exponent of the
    // doubling (2^k, 2^(k+1)] that holds it.
    let doubling = (bytes - 1).ilog2();
    let step = 1u64 << (doubling - CLASSES_PER_DOUBLING_LOG2);
    bytes
        .checked_next_multiple_of(step)
        .map_or(max_bytes, |class| class.min(max_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_hold_what_they_are_for_and_waste_little() {
        let max = 1 << 31;
        let (mut waste_sum, mut sizes) = (0.0, 0u32);
        let mut bytes = MIN_CLASS_BYTES;
        while bytes < 1 << 30 {
            for size in [bytes - 1, bytes, bytes + 1] {
                let class = class_bytes(size, max);
                assert!(
                    class >= size && class.is_multiple_of(4),
                    "{size} -> {class}"
                );
                assert_eq!(class_bytes(class, max), class, "a class is its own class");
                if size >= MIN_CLASS_BYTES {
                    let waste = (class - size) as f64 / class as f64;
                    assert!(waste <= 0.125, "{size} -> {class} wastes {waste}");
                    waste_sum += waste;
                    sizes += 1;
                }
            }
            bytes += bytes / 97 + 1;
        }
        assert!(
            waste_sum / f64::from(sizes) <= 0.065,
            "mean waste {}",
            waste_sum / f64::from(sizes)
        );
    }

    #[test]
    fn eight_classes_in_each_doubling() {
        let classes: std::collections::BTreeSet<u64> = (4097..=8192)
            .map(|bytes| class_bytes(bytes, u64::MAX))
            .collect();
        assert_eq!(classes.len(), 8);
    }

    #[test]
    fn rounding_up_never_exceeds_the_device() {
        let max = ((1u64 << 31) - 1) & !3;
        assert_eq!(class_bytes(max - 100, max), max);
        assert_eq!(class_bytes(max, max), max);
        assert_eq!(class_bytes(u64::MAX, !3), !3);
    }
}
