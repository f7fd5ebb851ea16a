//! Tensors as they lie in a file.

use std::fmt;
use std::ops::Range;

use half::{bf16, f16};

use super::header::Entry;
use crate::error::{Error, Result, StoredType};

/// Names of the other types and bits of an element.
const OTHERS: [(&str, usize); 19] = [
    ("BOOL", 8),
    ("F4", 4),
    ("F6_E2M3", 6),
    ("F6_E3M2", 6),
    ("U8", 8),
    ("I8", 8),
    ("F8_E5M2", 8),
    ("F8_E4M3", 8),
    ("F8_E8M0", 8),
    ("F8_E4M3FNUZ", 8),
    ("F8_E5M2FNUZ", 8),
    ("I16", 16),
    ("U16", 16),
    ("I32", 32),
    ("U32", 32),
    ("F64", 64),
    ("I64", 64),
    ("U64", 64),
    ("C64", 64),
];

impl StoredType {
    pub(super) fn from_name(name: &str) -> Option<Self> {
        let floats = [Self::F32, Self::F16, Self::Bf16];
        let others = OTHERS.iter().map(|(name, _)| Self::Other(name));
        floats
            .into_iter()
            .chain(others)
            .find(|known| known.name() == name)
    }

    /// Bits of an element.
    pub(super) fn bits(self) -> usize {
        match self {
            Self::F32 => 32,
            Self::F16 | Self::Bf16 => 16,
            Self::Other(name) => OTHERS
                .iter()
                .find(|(known, _)| *known == name)
                .map_or(0, |(_, bits)| *bits),
        }
    }

    /// Whether parameters may be stored so.
    pub(super) fn is_accepted(self) -> bool {
        !matches!(self, Self::Other(_))
    }

    /// The elements in `bytes` as f32, exactly; false for a type that is not accepted.
    fn widen(self, bytes: &[u8], out: &mut [f32]) -> bool {
        fn each<const N: usize>(bytes: &[u8], out: &mut [f32], widen: impl Fn([u8; N]) -> f32) {
            let (elements, _) = bytes.as_chunks::<N>();
            for (value, element) in out.iter_mut().zip(elements) {
                *value = widen(*element);
            }
        }
        match self {
            Self::F32 => each(bytes, out, f32::from_le_bytes),
            Self::F16 => each(bytes, out, |b| f16::from_le_bytes(b).to_f32()),
            Self::Bf16 => each(bytes, out, |b| bf16::from_le_bytes(b).to_f32()),
            Self::Other(_) => return false,
        }
        true
    }

    /// Appends `values` to `bytes`, rounded to the nearest; gives the first finite value that would become infinite.
    #[cfg(not(target_arch = "wasm32"))]
    pub(super) fn narrow(self, values: &[f32], bytes: &mut Vec<u8>) -> Option<f32> {
        let lost = |value: f32, infinite: bool| infinite && value.is_finite();
        match self {
            Self::F16 => {
                for &value in values {
                    let stored = f16::from_f32(value);
                    if lost(value, stored.is_infinite()) {
                        return Some(value);
                    }
                    bytes.extend(stored.to_le_bytes());
                }
            }
            Self::Bf16 => {
                for &value in values {
                    let stored = bf16::from_f32(value);
                    if lost(value, stored.is_infinite()) {
                        return Some(value);
                    }
                    bytes.extend(stored.to_le_bytes());
                }
            }
            // Writers refuse the others.
            Self::F32 | Self::Other(_) => {
                bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            }
        }
        None
    }
}

/// A tensor of a [`WeightFile`](super::WeightFile), where it lies.
#[derive(Clone, Copy)]
pub struct StoredTensor<'a> {
    pub(super) entry: &'a Entry,
    pub(super) bytes: &'a [u8],
}

impl<'a> StoredTensor<'a> {
    /// Its name in the file.
    pub fn name(&self) -> &'a str {
        &self.entry.name
    }

    /// Elements along each dimension, the last one contiguous.
    pub fn shape(&self) -> &'a [usize] {
        &self.entry.shape
    }

    /// Type of the elements.
    pub fn stored_type(&self) -> StoredType {
        self.entry.stored_type
    }

    /// Number of elements.
    pub fn num_elements(&self) -> usize {
        // The header's check multiplied them already.
        self.entry.shape.iter().product()
    }

    /// The elements as they are in the file, little-endian, at any alignment.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Elements of the range as f32, exactly.
    ///
    /// # Errors
    /// [`Error::WrongStoredType`] for a type that parameters cannot have, [`Error::InvalidShape`] for a range that reaches
    /// beyond the tensor.
    pub fn to_f32(&self, elements: Range<usize>) -> Result<Vec<f32>> {
        let (given, num_elements) = (elements.clone(), self.num_elements());
        if elements.start > elements.end || elements.end > num_elements {
            return Err(Error::InvalidShape {
                what: "range of elements",
                given: format!("{given:?}"),
                need: format!("within 0..{num_elements}"),
            });
        }
        if !self.stored_type().is_accepted() {
            return Err(Error::WrongStoredType {
                name: self.name().to_owned(),
                given: self.stored_type(),
            });
        }
        let mut values = vec![0.0; elements.len()];
        self.read(elements.start, &mut values);
        Ok(values)
    }

    /// Fills `out` with the elements from `first` on, which are there, of an accepted type.
    pub(super) fn read(&self, first: usize, out: &mut [f32]) {
        let size = self.stored_type().bits() / 8;
        let bytes = &self.bytes[first * size..][..out.len() * size];
        let accepted = self.stored_type().widen(bytes, out);
        debug_assert!(accepted, "checked by the caller");
    }
}

impl fmt::Debug for StoredTensor<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredTensor")
            .field("name", &self.entry.name)
            .field("shape", &self.entry.shape)
            .field("stored_type", &self.entry.stored_type)
            .finish_non_exhaustive()
    }
}
