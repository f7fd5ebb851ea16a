//! Tokens in safetensors files.

use std::collections::BTreeMap;
use std::path::Path;

use super::WeightFile;
use super::new_header::NewHeader;
use crate::device::DType;
use crate::error::{Error, Result, StoredType, WeightsError};
use crate::out_of_core::TokenFile;

impl TokenFile {
    /// Makes a safetensors file at `path`, where there must be none: one tensor `name` of this shape and type, whose elements are 0
    /// until they are written. The disk's space is reserved.
    ///
    /// # Errors
    /// As [`create`](Self::create); [`Error::WrongDType`] for integers, [`Error::SizeOverflow`] for a shape with more elements than
    /// there are numbers.
    pub fn create_safetensors(
        path: impl AsRef<Path>,
        name: &str,
        shape: &[usize],
        dtype: DType,
    ) -> Result<Self> {
        expect_order(path.as_ref())?;
        let stored_type = match dtype {
            DType::F32 => StoredType::F32,
            DType::F16 => StoredType::F16,
            DType::Bf16 => StoredType::Bf16,
            DType::U32 => {
                return Err(Error::WrongDType {
                    what: name.to_owned().into(),
                    given: dtype,
                    need: DType::F32,
                });
            }
        };
        let elements = shape
            .iter()
            .try_fold(1u64, |elements, dim| elements.checked_mul(*dim as u64));
        let bytes = elements.and_then(|elements| elements.checked_mul(dtype.bytes()));
        let (Some(elements), Some(bytes)) = (elements, bytes) else {
            return Err(Error::SizeOverflow {
                what: name.to_owned().into(),
                given: format!("{shape:?}"),
            });
        };
        let header = NewHeader {
            metadata: &BTreeMap::new(),
            stored_type,
            tensors: vec![(name.to_owned(), shape, [0, bytes])],
        };
        Self::create(path, &header.to_bytes()?, dtype, elements)
    }

    /// Opens the tensor `name` of a safetensors file, to read it.
    ///
    /// # Errors
    /// As [`open`](Self::open) and [`WeightFile::open`]; [`Error::TokenFile`] when the file has no such tensor,
    /// [`WeightsError::WrongStoredType`] for a type that attention does not take.
    pub fn open_safetensors(path: impl AsRef<Path>, name: &str) -> Result<Self> {
        let path = path.as_ref();
        let (first_byte, dtype, elements) = find(path, name)?;
        Self::open(path, first_byte, dtype, elements)
    }

    /// Opens the file that [`create_safetensors`](Self::create_safetensors) has made, to go on writing.
    ///
    /// # Errors
    /// As [`open_safetensors`](Self::open_safetensors).
    pub fn open_safetensors_to_write(path: impl AsRef<Path>, name: &str) -> Result<Self> {
        let path = path.as_ref();
        let (first_byte, dtype, elements) = find(path, name)?;
        Self::open_to_write(path, first_byte, dtype, elements)
    }
}

/// Checks that the machine has its numbers in the order of the format.
fn expect_order(path: &Path) -> Result<()> {
    match cfg!(target_endian = "big") {
        false => Ok(()),
        true => Err(Error::TokenFile {
            path: path.to_owned(),
            action: "opened",
            reason: "the format is little-endian, this machine is not".to_owned(),
        }),
    }
}

/// First byte, type and number of elements of a tensor.
fn find(path: &Path, name: &str) -> Result<(u64, DType, u64)> {
    expect_order(path)?;
    let file = WeightFile::open(path)?;
    let tensor = file.get(name).ok_or_else(|| Error::TokenFile {
        path: path.to_owned(),
        action: "opened",
        reason: format!("it has no tensor {name}"),
    })?;
    let dtype = match tensor.stored_type() {
        StoredType::F32 => DType::F32,
        StoredType::F16 => DType::F16,
        StoredType::Bf16 => DType::Bf16,
        given @ StoredType::Other(_) => {
            let name = name.to_owned();
            return Err(WeightsError::WrongStoredType { name, given }.into());
        }
    };
    Ok((
        tensor.entry.range.start,
        dtype,
        tensor.num_elements() as u64,
    ))
}
