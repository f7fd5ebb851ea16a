//! Tensors in a weight file.

use std::fmt;
use std::ops::Range;

use half::{bf16, f16};

use super::file::WeightFile;
use super::header::{Entry, quoted};
use super::storage::ReadError;
use crate::error::{StoredType, WeightsError};

/// Bytes of f16 or bf16 elements that are read and converted at a time. They fit in the cache of a core.
const BLOCK_BYTES: usize = 64 << 10;

/// The other types of the format: name and bits of an element.
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

    /// Number of bits of an element.
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

    /// Whether parameters may have this type.
    pub(super) fn is_accepted(self) -> bool {
        !matches!(self, Self::Other(_))
    }

    /// Appends `values` to `bytes` in this type, rounded to the nearest. Returns the first finite value that becomes infinite, if
    /// there is one.
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
            // Writers refuse other types before.
            Self::F32 | Self::Other(_) => {
                bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            }
        }
        None
    }
}

/// A tensor in a [`WeightFile`]. Its elements are read when they are asked for.
#[derive(Clone, Copy)]
pub struct StoredTensor<'a> {
    pub(super) file: &'a WeightFile,
    pub(super) entry: &'a Entry,
}

impl<'a> StoredTensor<'a> {
    /// Name of the tensor in the file.
    pub fn name(&self) -> &'a str {
        &self.entry.name
    }

    /// Elements along each dimension, the last one contiguous.
    pub fn shape(&self) -> &'a [usize] {
        &self.entry.shape
    }

    /// Element type of the tensor in the file.
    pub fn stored_type(&self) -> StoredType {
        self.entry.stored_type
    }

    /// Number of elements.
    pub fn num_elements(&self) -> usize {
        // Does not overflow: the check of the header has multiplied the dimensions.
        self.entry.shape.iter().product()
    }

    /// Number of bytes of all elements.
    pub fn num_bytes(&self) -> u64 {
        self.entry.range.end - self.entry.range.start
    }

    /// The bytes of a range of the tensor as they are in the file, little-endian.
    ///
    /// # Errors
    /// [`WeightsError::RangeOutside`] for a range outside of the tensor, [`WeightsError::HostMemory`] for one too large for memory;
    /// [`WeightsError::FileChanged`] and [`WeightsError::Unreadable`].
    pub fn to_bytes(&self, bytes: Range<usize>) -> Result<Vec<u8>, WeightsError> {
        let mut out = self.zeros("bytes", &bytes, self.num_bytes())?;
        self.read_bytes(bytes.start as u64, &mut out)?;
        self.check_unchanged(bytes.start as u64)?;
        Ok(out)
    }

    /// The elements of a range of the tensor as f32. The conversion is exact.
    ///
    /// # Errors
    /// [`WeightsError::WrongStoredType`] for a type that parameters cannot have, and as [`to_bytes`](Self::to_bytes).
    pub fn to_f32(&self, elements: Range<usize>) -> Result<Vec<f32>, WeightsError> {
        self.expect_convertible()?;
        let mut out = self.zeros("elements", &elements, self.num_elements() as u64)?;
        self.read(elements.start, &mut out)?;
        Ok(out)
    }

    /// # Errors
    /// [`WeightsError::WrongStoredType`] for a type that parameters cannot have.
    fn expect_convertible(&self) -> Result<(), WeightsError> {
        match self.stored_type() {
            StoredType::F32 | StoredType::F16 | StoredType::Bf16 => Ok(()),
            given @ StoredType::Other(_) => Err(WeightsError::WrongStoredType {
                name: self.name().to_owned(),
                given,
            }),
        }
    }

    /// Zeros for the elements of `range`, which must lie within `limit`.
    fn zeros<T: bytemuck::Zeroable>(
        &self,
        unit: &'static str,
        range: &Range<usize>,
        limit: u64,
    ) -> Result<Vec<T>, WeightsError> {
        if range.start > range.end || range.end as u64 > limit {
            return Err(WeightsError::RangeOutside {
                tensor: self.name().to_owned(),
                unit,
                given: range.clone(),
                limit,
            });
        }
        bytemuck::allocation::try_zeroed_vec(range.len()).map_err(|()| WeightsError::HostMemory {
            tensor: self.name().to_owned(),
            bytes: range.len() as u64 * size_of::<T>() as u64,
        })
    }

    /// Fills `out` with the elements from `first` on as f32. They must lie within the tensor.
    pub(super) fn read(&self, first: usize, out: &mut [f32]) -> Result<(), WeightsError> {
        let stored_type = self.stored_type();
        let first_byte = first as u64 * (stored_type.bits() / 8) as u64;
        match stored_type {
            StoredType::F32 => {
                self.read_bytes(first_byte, bytemuck::cast_slice_mut(out))?;
                // As integers, because in the floating point registers of some processors a signalling NaN becomes a quiet one.
                for word in bytemuck::cast_slice_mut::<f32, u32>(out) {
                    *word = u32::from_le(*word);
                }
            }
            StoredType::F16 => self.widen(first_byte, out, |b| f16::from_le_bytes(b).to_f32())?,
            StoredType::Bf16 => self.widen(first_byte, out, |b| bf16::from_le_bytes(b).to_f32())?,
            StoredType::Other(_) => self.expect_convertible()?,
        }
        self.check_unchanged(first_byte)
    }

    /// Fills `out` with the f16 or bf16 elements from `first_byte` on, converted to f32.
    fn widen(
        &self,
        mut first_byte: u64,
        out: &mut [f32],
        widen: impl Fn([u8; 2]) -> f32,
    ) -> Result<(), WeightsError> {
        let mut block = vec![0u8; BLOCK_BYTES.min(2 * out.len())];
        for values in out.chunks_mut(BLOCK_BYTES / 2) {
            let bytes = &mut block[..2 * values.len()];
            self.read_bytes(first_byte, bytes)?;
            first_byte += bytes.len() as u64;
            let (halves, _) = bytes.as_chunks::<2>();
            for (value, half) in values.iter_mut().zip(halves) {
                *value = widen(*half);
            }
        }
        Ok(())
    }

    /// Fills `out` with the tensor's bytes from `first` on. They must lie within the tensor.
    fn read_bytes(&self, first: u64, out: &mut [u8]) -> Result<(), WeightsError> {
        let offset = self.entry.range.start + first;
        let read = self.file.storage().read(offset, out);
        read.map_err(|error| self.told(error, offset))
    }

    /// To be called after a read from byte `first` on: fails if the file has changed since it was opened.
    fn check_unchanged(&self, first: u64) -> Result<(), WeightsError> {
        let unchanged = self.file.storage().check_unchanged();
        unchanged.map_err(|error| self.told(error, self.entry.range.start + first))
    }

    fn told(&self, error: ReadError, offset: u64) -> WeightsError {
        let part = format!("tensor {}", quoted(self.name()));
        error.told(self.file.label(), part, offset, self.file.storage().len())
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
