//! Deterministic test data.

/// `count` numbers in -1..1 with 24 bits each, so that they are exact in single precision; `seed` tells tensors apart.
pub fn uniform(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed ^ 0x9e37_79b9_7f4a_7c15;
    let numbers = (0..count).map(|_| {
        // xorshift64*: one multiplication a number, far better than the tests need.
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        let bits = state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 40;
        bits as f32 / (1 << 23) as f32 - 1.0
    });
    numbers.collect()
}
