//! Operations on matrices, forward and backward. The layers of [`nn`](crate::nn) consist of them.
//!
//! An operation takes tensors as row-major matrices ([`Matrix`]) and records dispatches. Inputs and outputs may be larger than a
//! binding, and lie in several buffers: operations go over windows of rows, at offsets that the device allows. Results go to tensors that the caller provides.
//! None of them may share a buffer with an input, because a dispatch cannot read and write the same buffer.
//!
//! In a forward, activations may be f32, f16 or bf16. Weights, statistics, logits and everything in a backward are f32. Kernels
//! compute in f32. A result in half precision is rounded once; on CPU adapters twice, where a product is followed by an activation
//! or a residual.
//!
//! The order of all sums depends on shapes only, and there are no atomics. So results have the same bits on every run.

#[cfg(feature = "training")]
pub(crate) mod adamw;
mod convert;
mod elementwise;
mod embedding;
mod loss;
mod matmul;
mod norm;
mod reduce;
mod xpos;

pub use convert::convert;
#[cfg(not(target_arch = "wasm32"))]
pub(crate) use convert::convert_rows;
pub use elementwise::{Dropout, ScaledAdd, activation, activation_backward};
pub use embedding::{TokenIds, embedding, embedding_backward};
pub use loss::{IGNORED_LABEL, Labels, cross_entropy};
pub use matmul::{Matmul, bias_backward};
pub use norm::{layer_norm, layer_norm_backward, rms_norm, rms_norm_backward};
pub use reduce::{mean_of_rows, sum, sum_of_squares};
pub use xpos::{Positions, Rotations, XposRole, xpos};

pub use crate::kernels::activation::Activation;

use std::ops::Range;

use crate::device::{ByteRange, DType, DeviceCaps, ElementFormat};
use crate::error::{Error, Result};
use crate::kernels::fold_grid;
use crate::plan::window::RowLayout;
use crate::recorder::Recorder;
use crate::tensor::{EMPTY_BYTES, Tensor};

/// A view of consecutive rows of a tensor as a row-major matrix.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    tensor: &'a Tensor,
    begin: u64,
    end: u64,
    width: u64,
}

/// A binding of rows of a matrix.
#[derive(Clone, Copy)]
struct Bound<'a> {
    binding: (&'a Tensor, ByteRange),
    /// Elements (or vectors, or other units) of the binding before the first row.
    skip: u32,
}

impl Tensor {
    /// The tensor as a matrix: the last dimension is a row, all other dimensions count rows.
    pub fn matrix(&self) -> Matrix<'_> {
        let width = self.shape().last().map_or(1, |width| *width as u64);
        self.matrix_of_width(width)
    }

    /// The tensor as a matrix with one row of all elements.
    pub fn vector(&self) -> Matrix<'_> {
        self.matrix_of_width(self.num_elements())
    }

    fn matrix_of_width(&self, width: u64) -> Matrix<'_> {
        Matrix {
            tensor: self,
            begin: 0,
            end: self.num_elements().checked_div(width).unwrap_or(0),
            width,
        }
    }
}

impl<'a> Matrix<'a> {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        // Elements lie in a buffer, whose bytes fit in memory.
        self.num_rows() as usize
    }

    /// Elements of a row.
    pub fn width(&self) -> usize {
        self.width as usize
    }

    /// Some rows of this matrix.
    ///
    /// # Errors
    /// [`Error::InvalidShape`] when it does not have them.
    pub fn slice(&self, rows: Range<usize>) -> Result<Self> {
        self.slice_rows(rows.start as u64, rows.end as u64)
    }

    /// The same elements in rows of `width`. So a product writes the q of an attention, and reads its output:
    ///
    /// ```
    /// use dilated_attention::{Context, DType, DilatedAttention, DilatedAttentionConfig, ops::Matmul};
    ///
    /// # fn main() -> dilated_attention::Result<()> {
    /// let context = Context::new_blocking()?;
    /// let attention = DilatedAttention::new(&context, DilatedAttentionConfig::new(2, 16, &[64], &[1])?)?;
    /// let mut recorder = context.recorder("layer");
    /// let x = recorder.upload("x", &[100, 20], &[0.1f32; 2000])?;
    /// let weight = recorder.upload("weight", &[32, 20], &[0.1f32; 640])?;
    /// let q = recorder.empty("q", &[1, 100, 2, 16], DType::F32)?; // (batch, token, head, element)
    /// Matmul::new(x.matrix(), weight.matrix()).with_transposed_b().write(&mut recorder, q.matrix().reshape(32)?)?;
    /// let out = attention.forward(&mut recorder, &q, &q, &q)?.out;
    /// assert_eq!(out.matrix().reshape(32)?.rows(), 100);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::InvalidShape`] when they do not fill whole rows.
    pub fn reshape(&self, width: usize) -> Result<Self> {
        self.in_rows_of(width as u64)
    }

    /// Type of the elements.
    pub fn dtype(&self) -> DType {
        self.tensor.dtype()
    }

    /// Number of rows, as operations count.
    fn num_rows(&self) -> u64 {
        self.end - self.begin
    }

    /// [`slice`](Self::slice), as operations count.
    fn slice_rows(&self, begin: u64, end: u64) -> Result<Self> {
        if begin > end || end > self.num_rows() {
            return Err(Error::InvalidShape {
                what: self.tensor.label().clone(),
                given: format!("rows {begin}..{end} of {}", self.num_rows()),
                need: "rows that it has".to_owned(),
            });
        }
        Ok(Self {
            begin: self.begin + begin,
            end: self.begin + end,
            ..*self
        })
    }

    /// [`reshape`](Self::reshape), as operations count.
    fn in_rows_of(&self, width: u64) -> Result<Self> {
        let (begin, end) = (self.begin * self.width, self.end * self.width);
        if width == 0 || !begin.is_multiple_of(width) || !end.is_multiple_of(width) {
            return Err(Error::InvalidShape {
                what: self.tensor.label().clone(),
                given: format!("elements {begin}..{end}"),
                need: format!("whole rows of {width}"),
            });
        }
        let part_elements = self.tensor.part_bytes() / self.dtype().bytes();
        if !self.tensor.is_undivided() && !part_elements.is_multiple_of(width) {
            return Err(Error::InvalidShape {
                what: self.tensor.label().clone(),
                given: format!("rows of {width} elements"),
                need: format!(
                    "rows that lie in one buffer each: the tensor lies in several, of {part_elements} elements"
                ),
            });
        }
        Ok(Self {
            tensor: self.tensor,
            begin: begin / width,
            end: end / width,
            width,
        })
    }

    /// The layout of rows, in units of `elements` elements.
    fn layout(&self, elements: u64) -> RowLayout {
        let bytes = self.dtype().bytes();
        RowLayout {
            row_bytes: self.width * bytes,
            element_bytes: elements * bytes,
            part_bytes: self.tensor.part_bytes(),
        }
    }

    /// Number of rows from `begin` on that a binding covers.
    fn rows_from(&self, begin: u64, caps: &DeviceCaps) -> u64 {
        self.layout(1).rows_from(self.begin + begin, caps)
    }

    /// Binds the rows `begin .. end` of this matrix.
    fn bind(&self, begin: u64, end: u64, caps: &DeviceCaps) -> Result<Bound<'a>> {
        self.bind_units(begin, end, 1, caps)
    }

    /// Binds the rows `begin .. end` of this matrix in units of `elements` elements. The width of rows must be a multiple of it.
    fn bind_units(
        &self,
        begin: u64,
        end: u64,
        elements: u64,
        caps: &DeviceCaps,
    ) -> Result<Bound<'a>> {
        let layout = self.layout(elements);
        let window = layout.window(self.begin + begin, self.begin + end, caps);
        let Some(mut window) = window else {
            return Err(Error::BindingTooSmall {
                what: self.tensor.label().clone(),
                requested_bytes: (end - begin) * layout.row_bytes,
                limit_bytes: caps.max_binding_bytes,
            });
        };
        if window.bytes.size == 0 {
            // No rows, but something must be bound.
            let size = self.tensor.whole().size.min(EMPTY_BYTES);
            window.bytes = ByteRange { offset: 0, size };
        }
        Ok(Bound {
            binding: (self.tensor, window.bytes),
            skip: window.skip,
        })
    }

    /// Checks that the matrix has this shape and element type and belongs to the recorder's context.
    fn expect(
        &self,
        what: &'static str,
        rows: u64,
        width: u64,
        dtype: DType,
        recorder: &Recorder,
    ) -> Result<()> {
        let pool_id = recorder.context().pool().id();
        self.tensor
            .expect(what, self.tensor.shape(), dtype, pool_id)?;
        if (self.num_rows(), self.width) != (rows, width) {
            return Err(Error::InvalidShape {
                what: what.into(),
                given: format!("{} rows of {}", self.num_rows(), self.width),
                need: format!("{rows} rows of {width}"),
            });
        }
        Ok(())
    }

    /// As [`expect`](Self::expect), for activations: f32, or half precision with a width that is a multiple of 4.
    fn expect_activations(
        &self,
        what: &'static str,
        rows: u64,
        width: u64,
        recorder: &Recorder,
    ) -> Result<ElementFormat> {
        let format = ElementFormat::of(what, self.dtype(), recorder.context().caps())?;
        self.expect(what, rows, width, self.dtype(), recorder)?;
        if format != ElementFormat::F32 && !width.is_multiple_of(4) {
            return Err(Error::InvalidShape {
                what: what.into(),
                given: format!("rows of {width} elements of type {}", self.dtype()),
                need: "rows of a multiple of 4 elements, in half precision".to_owned(),
            });
        }
        Ok(format)
    }

    /// As [`expect`](Self::expect), for f32.
    fn expect_f32(
        &self,
        what: &'static str,
        rows: u64,
        width: u64,
        recorder: &Recorder,
    ) -> Result<()> {
        self.expect(what, rows, width, DType::F32, recorder)
    }
}

/// Cuts `count` rows into ranges that a binding of each of `matrices` can cover.
fn row_windows(
    what: &'static str,
    count: u64,
    matrices: &[Matrix<'_>],
    caps: &DeviceCaps,
) -> Result<Vec<(u64, u64)>> {
    row_windows_of(what, count, matrices, 1, caps)
}

/// As [`row_windows`], of which each begins at a multiple of `unit`.
fn row_windows_of(
    what: &'static str,
    count: u64,
    matrices: &[Matrix<'_>],
    unit: u64,
    caps: &DeviceCaps,
) -> Result<Vec<(u64, u64)>> {
    let mut windows = Vec::new();
    let mut begin = 0;
    while begin < count {
        let covered = matrices.iter().map(|matrix| matrix.rows_from(begin, caps));
        let size = covered.fold(u64::MAX, u64::min).min(count - begin);
        let size = match begin + size < count {
            true => size - size % unit,
            false => size,
        };
        if size == 0 {
            let of_unit = |matrix: &Matrix<'_>| unit * matrix.width * matrix.dtype().bytes();
            let requested = matrices.iter().map(of_unit).max().unwrap_or(0);
            return Err(Error::BindingTooSmall {
                what: what.into(),
                requested_bytes: requested + caps.storage_offset_alignment,
                limit_bytes: caps.max_binding_bytes,
            });
        }
        windows.push((begin, begin + size));
        begin += size;
    }
    Ok(windows)
}

/// Width and height of a dispatch of `num_workgroups` workgroups.
fn grid(what: &'static str, num_workgroups: u64, caps: &DeviceCaps) -> Result<[u32; 2]> {
    u32::try_from(num_workgroups)
        .ok()
        .and_then(|number| fold_grid(number, caps.max_workgroups_per_dimension))
        .ok_or_else(|| Error::SizeOverflow {
            what: what.into(),
            given: format!("{num_workgroups} workgroups"),
        })
}

/// A size as the 32-bit number that kernels take.
fn size(what: &'static str, size: u64) -> Result<u32> {
    u32::try_from(size).map_err(|_| Error::SizeOverflow {
        what: what.into(),
        given: size.to_string(),
    })
}
