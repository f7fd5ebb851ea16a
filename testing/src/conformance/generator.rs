//! Tensors made from a name, bit for bit the same in every language: files of long sequences do not store their inputs.
//!
//! ```text
//! seed = FNV-1a 64 of the name          state_i = seed + (i + 1) * 0x9E3779B97F4A7C15
//! z_i  = splitmix64's finaliser of state_i       bits_i = z_i >> 40, 24 of them
//! value_i = f32(base + scale * (bits_i - 2^23) / 2^23), evaluated in f64
//! ```

/// Largest tensor that is made, in elements: 4 GiB. A header asking for more is refused, not tried.
pub const MAX_ELEMENTS: usize = 1 << 30;

/// A tensor and the sum of the 24-bit draws it was made of.
pub struct Generated {
    /// The values.
    pub values: Vec<f32>,
    /// Sum of all draws.
    pub bitsum: u64,
}

/// Makes the first `count` values of the tensor `name`.
pub fn generate(name: &str, count: usize, base: f64, scale: f64) -> Generated {
    let half = f64::from(1 << 23);
    // At most 2^30 draws below 2^24: the sum stays far below 2^64.
    let mut bitsum = 0;
    let values = draws(name).take(count).map(|bits| {
        bitsum += bits;
        (base + scale * ((bits as f64 - half) / half)) as f32
    });
    Generated {
        values: values.collect(),
        bitsum,
    }
}

/// All draws of the tensor `name`, 24 bits each.
pub fn draws(name: &str) -> impl Iterator<Item = u64> + use<> {
    let seed = fnv1a64(name.as_bytes());
    (0..).map(move |index| splitmix64(seed, index) >> 40)
}

fn fnv1a64(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Output number `index` of splitmix64 from `seed`.
fn splitmix64(seed: u64, index: u64) -> u64 {
    let z = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Published test vectors of both hashes, and values of the generator's description.
    #[test]
    fn generator_matches_published_values() {
        assert_eq!(fnv1a64(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a64(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv1a64(b"foobar"), 0x8594_4171_f739_67e8);
        let outputs = [
            6457827717110365317,
            3203168211198807973,
            9817491932198370423,
        ];
        for (index, output) in outputs.into_iter().enumerate() {
            assert_eq!(splitmix64(1234567, index as u64), output);
        }
        let units = generate("x", 3, 0.0, 1.0).values;
        assert_eq!(units, [-0.59758353, 0.6170535, 0.2866472]);
    }
}
