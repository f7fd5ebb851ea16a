//! Arrays on the device: a shape, an element type and leased storage.
//!
//! Callers never see the storage, which is one leased buffer or, of tensors made
//! [together](crate::Recorder::empty_together), a part of one. A plan binds [windows](crate::plan::TokenWindow) of it, byte
//! ranges that one binding may cover, so that a tensor may be larger than a binding.

use std::sync::Arc;

use crate::contents::Contents;
use crate::device::{ByteRange, DType, Element};
use crate::error::{Error, Result};
use crate::pool::Lease;

/// An array on the device, row-major. Clones share the storage, which goes back to the pool with the last of them (and
/// not before every recording that uses it was submitted).
///
/// A tensor knows whether what writes it was submitted. A recording that reads one which was never written, or whose writer is
/// not submitted yet, was dropped or was cancelled on the way, is refused when it is submitted:
/// [`Error::NotWritten`].
#[derive(Clone, Debug)]
pub struct Tensor {
    shape: Box<[usize]>,
    dtype: DType,
    lease: Lease,
    /// Where in the storage the elements begin; an offset that bindings may have.
    offset: u64,
    contents: Arc<Contents>,
    /// Whether the contents are those of a larger tensor.
    is_part: bool,
}

impl Tensor {
    pub(crate) fn new(shape: &[usize], dtype: DType, lease: Lease, offset: u64) -> Self {
        Self {
            shape: shape.into(),
            dtype,
            contents: Contents::new(lease.label()),
            lease,
            offset,
            is_part: false,
        }
    }

    /// A part of the tensor's storage as a tensor of its own, from the byte `offset` on, a multiple of 4. Kernels can bind it
    /// only where that is a multiple of the device's alignment; copies need no more.
    #[cfg(feature = "models")]
    pub(crate) fn part(&self, shape: &[usize], offset: u64) -> Self {
        Self {
            shape: shape.into(),
            dtype: self.dtype,
            lease: self.lease.clone(),
            offset: self.offset + offset,
            contents: self.contents.clone(),
            is_part: true,
        }
    }

    /// Elements along each dimension, the last one contiguous.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Type of the elements.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Number of elements.
    pub fn num_elements(&self) -> u64 {
        self.shape.iter().map(|&d| d as u64).product()
    }

    /// Bytes of all elements.
    pub fn num_bytes(&self) -> u64 {
        self.num_elements() * self.dtype.bytes()
    }

    /// What the tensor is for.
    pub fn label(&self) -> &'static str {
        self.lease.label()
    }

    pub(crate) fn lease(&self) -> &Lease {
        &self.lease
    }

    /// Whether it was written.
    pub(crate) fn contents(&self) -> &Arc<Contents> {
        &self.contents
    }

    /// Whether the contents are those of a larger tensor.
    pub(crate) fn is_part(&self) -> bool {
        self.is_part
    }

    /// The range of the storage that holds the bytes `range` of this tensor.
    pub(crate) fn stored(&self, range: ByteRange) -> ByteRange {
        ByteRange {
            offset: self.offset + range.offset,
            ..range
        }
    }

    /// All bytes of the tensor, in whole words; of a tensor without elements one word, since nothing smaller can be bound.
    pub(crate) fn whole(&self) -> ByteRange {
        ByteRange {
            offset: 0,
            size: padded_bytes(self.num_bytes()),
        }
    }

    /// Whether this tensor is `what` of shape `shape` and type `dtype` on the context with pool `pool_id`.
    pub(crate) fn expect(
        &self,
        what: &'static str,
        shape: &[usize],
        dtype: DType,
        pool_id: u64,
    ) -> Result<()> {
        if self.lease.pool_id() != pool_id {
            return Err(Error::ContextMismatch {
                what,
                given: self.lease.pool_id(),
                expected: pool_id,
            });
        }
        if self.dtype != dtype {
            return Err(Error::WrongDType {
                what,
                given: self.dtype,
                need: dtype,
            });
        }
        if *self.shape != *shape {
            return Err(Error::InvalidShape {
                what,
                given: format!("{:?}", self.shape),
                need: format!("{shape:?}"),
            });
        }
        Ok(())
    }
}

/// Bytes of a tensor of `shape` and `dtype`.
///
/// # Errors
/// [`Error::SizeOverflow`] when they exceed 64 bits.
pub(crate) fn num_bytes(label: &'static str, shape: &[usize], dtype: DType) -> Result<u64> {
    shape
        .iter()
        .try_fold(dtype.bytes(), |bytes, &d| bytes.checked_mul(d as u64))
        // With the padding of a buffer, too.
        .filter(|bytes| *bytes <= u64::MAX - 4)
        .ok_or_else(|| Error::SizeOverflow {
            what: label,
            given: format!("{shape:?} elements of {} bytes", dtype.bytes()),
        })
}

/// Bytes that `bytes` of elements take in a buffer.
pub(crate) fn padded_bytes(bytes: u64) -> u64 {
    bytes.max(4).next_multiple_of(4)
}

/// Whether all of `data`, elements of a tensor of `shape`, are finite.
///
/// # Errors
/// [`Error::NotFinite`] names the first that is not.
pub(crate) fn check_finite<T: Element>(
    label: &'static str,
    shape: &[usize],
    data: &[T],
) -> Result<()> {
    let find = |value: fn(&[u8]) -> f32| {
        let size = size_of::<T>();
        bytemuck::cast_slice::<T, u8>(data)
            .chunks_exact(size)
            .map(value)
            .enumerate()
            .find(|(_, value)| !value.is_finite())
    };
    let found = match T::DTYPE {
        DType::F32 => find(bytemuck::pod_read_unaligned),
        DType::F16 => find(|bytes| bytemuck::pod_read_unaligned::<half::f16>(bytes).to_f32()),
        DType::Bf16 => find(|bytes| bytemuck::pod_read_unaligned::<half::bf16>(bytes).to_f32()),
        DType::U32 => None,
    };
    let Some((index, value)) = found else {
        return Ok(());
    };
    let mut rest = index;
    let mut index = vec![0; shape.len()];
    for (index, size) in index.iter_mut().zip(shape).rev() {
        let size = (*size).max(1);
        *index = rest % size;
        rest /= size;
    }
    // Tensors of this rank are queries, keys, values and their like.
    let axes: &[&str] = match shape.len() {
        4 => &["item", "token", "head", "element"],
        _ => &[],
    };
    Err(Error::NotFinite {
        what: label,
        value,
        index,
        axes,
    })
}

/// Zeros that stand for an input of `given`. Memory that the system has no room for is an error; what it gives is not touched.
#[cfg(feature = "models")]
pub(crate) fn zeros<T: bytemuck::Zeroable>(
    what: &'static str,
    given: impl std::fmt::Display,
    count: Option<usize>,
) -> Result<Vec<T>> {
    let zeros = count.and_then(|count| bytemuck::allocation::try_zeroed_vec(count).ok());
    zeros.ok_or_else(|| Error::InvalidShape {
        what,
        given: given.to_string(),
        need: "small enough for the memory of this machine".to_owned(),
    })
}
