//! Types of elements, and their way to f32.

use half::{bf16, f16};

/// Type of the elements of an array, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    F16,
    Bf16,
    F32,
    F64,
    I32,
    I64,
    U32,
    U64,
}

impl Element {
    /// Bytes of one.
    pub fn size(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::F64 | Self::I64 | Self::U64 => 8,
        }
    }

    pub fn is_float(self) -> bool {
        matches!(self, Self::F16 | Self::Bf16 | Self::F32 | Self::F64)
    }

    /// Appends the elements in `bytes`, rounded to the nearest f32.
    pub fn append(self, bytes: &[u8], values: &mut Vec<f32>) {
        fn each<const N: usize>(bytes: &[u8], values: &mut Vec<f32>, of: impl Fn([u8; N]) -> f32) {
            let (elements, _) = bytes.as_chunks::<N>();
            values.extend(elements.iter().map(|element| of(*element)));
        }
        match self {
            Self::F16 => each(bytes, values, |b| f16::from_le_bytes(b).to_f32()),
            Self::Bf16 => each(bytes, values, |b| bf16::from_le_bytes(b).to_f32()),
            Self::F32 => each(bytes, values, f32::from_le_bytes),
            Self::F64 => each(bytes, values, |b| f64::from_le_bytes(b) as f32),
            Self::I32 => each(bytes, values, |b| i32::from_le_bytes(b) as f32),
            Self::I64 => each(bytes, values, |b| i64::from_le_bytes(b) as f32),
            Self::U32 => each(bytes, values, |b| u32::from_le_bytes(b) as f32),
            Self::U64 => each(bytes, values, |b| u64::from_le_bytes(b) as f32),
        }
    }
}

/// A number of up to 8 bytes, little-endian; floats of 2, 4 or 8.
pub fn number(bytes: &[u8], signed: bool, float: bool) -> f64 {
    let mut wide = [0; 8];
    let count = bytes.len().min(8);
    wide[..count].copy_from_slice(&bytes[..count]);
    let bits = u64::from_le_bytes(wide);
    match (float, count) {
        (true, 2) => f16::from_bits(bits as u16).to_f64(),
        (true, 4) => f32::from_bits(bits as u32).into(),
        (true, _) => f64::from_bits(bits),
        (false, _) if signed => {
            let unused = 64 - 8 * count as u32;
            let shifted = bits.checked_shl(unused).unwrap_or(0) as i64;
            shifted.checked_shr(unused).unwrap_or(0) as f64
        }
        (false, _) => bits as f64,
    }
}
