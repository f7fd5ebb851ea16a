//! Size classes: eight per doubling.
//!
//! Class sizes are `2^k * (8 + i) / 8` for `i` in `0..8`, from 256 bytes up. The worst waste is 12.5 % of the request (one
//! byte more than a class); the mean over the sizes of a doubling is 4.4 %. Two classes per doubling, as in vello, waste up
//! to 50 %. Sixteen would halve the waste, but double the number of lists that a request can miss in.
//!
//! Classes are numbered from 0. The number also is the index of the list in which a cached buffer waits. A buffer whose size
//! is not a class size (of [`Exact`](super::Exact), or the largest that the device allows) waits in the list of the next
//! class above.

/// Smallest class, in bytes: WebGPU's default alignment of buffer bindings.
pub const MIN_CLASS_BYTES: u64 = 1 << MIN_CLASS_LOG2;

const MIN_CLASS_LOG2: u32 = 8;

/// Classes in one doubling, as a power of two.
const CLASSES_PER_DOUBLING_LOG2: u32 = 3;

/// Number of classes that cover all sizes of 64 bits.
pub(super) const NUM_CLASSES: usize =
    ((64 - MIN_CLASS_LOG2) << CLASSES_PER_DOUBLING_LOG2) as usize + 1;

/// Number of the smallest class that holds `bytes`.
#[inline]
pub(super) fn class_index(bytes: u64) -> usize {
    if bytes <= MIN_CLASS_BYTES {
        return 0;
    }
    // floor(log2(bytes - 1)) is the exponent of the doubling (2^k, 2^(k+1)] that holds it.
    let doubling = (bytes - 1).ilog2();
    let step_log2 = doubling - CLASSES_PER_DOUBLING_LOG2;
    let steps = ((bytes - 1) >> step_log2) + 1;
    let first = (doubling - MIN_CLASS_LOG2) << CLASSES_PER_DOUBLING_LOG2;
    first as usize + (steps - (1 << CLASSES_PER_DOUBLING_LOG2)) as usize
}

/// Number of the largest class of at most `bytes`; of the smallest class if there is none.
#[inline]
pub(super) fn class_index_below(bytes: u64) -> usize {
    let above = class_index(bytes);
    if bytes_of_class(above).is_none_or(|class| class > bytes) {
        above.saturating_sub(1)
    } else {
        above
    }
}

/// Bytes of class `index`; `None` beyond 64 bits.
#[inline]
pub(super) fn bytes_of_class(index: usize) -> Option<u64> {
    let doubling = index as u32 >> CLASSES_PER_DOUBLING_LOG2;
    let eighths =
        (1 << CLASSES_PER_DOUBLING_LOG2) + (index as u64 % (1 << CLASSES_PER_DOUBLING_LOG2));
    let shift = MIN_CLASS_LOG2 - CLASSES_PER_DOUBLING_LOG2 + doubling;
    (eighths.leading_zeros() >= shift).then(|| eighths << shift)
}

/// Bytes of the smallest class that holds `bytes`, but at most `max_bytes` (a multiple of 4), so that rounding up does not
/// exceed the device's limit. The caller ensures `bytes <= max_bytes`.
pub fn class_bytes(bytes: u64, max_bytes: u64) -> u64 {
    bytes_of_class(class_index(bytes)).map_or(max_bytes, |class| class.min(max_bytes))
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

    #[test]
    fn classes_are_numbered_in_order() {
        let mut last = 0;
        for index in 0..NUM_CLASSES {
            let Some(bytes) = bytes_of_class(index) else {
                assert_eq!(index, NUM_CLASSES - 1, "only the last is beyond 64 bits");
                break;
            };
            assert!(bytes > last);
            assert_eq!(class_index(bytes), index);
            assert_eq!(class_index(last + 1), index);
            assert_eq!(class_index_below(bytes), index);
            assert_eq!(class_index_below(bytes + 1), index);
            last = bytes;
        }
        assert_eq!(class_index(u64::MAX), NUM_CLASSES - 1);
        assert_eq!(class_index_below(u64::MAX), NUM_CLASSES - 2);
    }
}
