//! Tensors of buffers that the application has.

use std::ops::Range;

use super::Context;
use crate::device::DType;
use crate::error::{Error, Result};
use crate::label::Label;
use crate::pool::{Lease, STORAGE_USAGE};
use crate::scope;
use crate::tensor::{
    Storage, Stored, Tensor, TensorPart, num_bytes, padded_bytes, part_bytes, part_rows,
};

impl Context {
    /// A tensor in buffers that the application has, for example one that its own shaders write. `parts` say where the rows
    /// lie: one part with all rows or, of a tensor that is larger than the device's largest buffer, several parts of
    /// [`rows_per_part`](Self::rows_per_part) rows, the last one with what is left.
    ///
    /// The buffer stays the application's: the pool never lends it, and does not count it as its own
    /// ([`PoolStats::imported`](crate::PoolStats::imported)). The tensor keeps it alive. [`Tensor`](Tensor#in-an-applications-own-shaders) says
    /// who may read and write when; the tensor counts as not written until a recording writes it or
    /// [`Tensor::mark_written`] is called. Bytes that are imported twice are two tensors, of which the library does not know that
    /// they are one: import them once and clone the tensor.
    ///
    /// ```no_run
    /// use dilated_attention::{Context, DType, Result, Tensor, TensorPart, wgpu};
    ///
    /// /// `features` holds 4096 tokens of 8 heads of 64 f32 each, which commands that were submitted have written.
    /// fn queries(context: &Context, features: &wgpu::Buffer) -> Result<Tensor> {
    ///     let whole = TensorPart::whole(features, 4096 * 8);
    ///     let q = context.import_tensor("q", &[1, 4096, 8, 64], DType::F32, &[whole])?;
    ///     q.mark_written();
    ///     Ok(q)
    /// }
    /// ```
    ///
    /// # Errors
    /// [`Error::InvalidPart`] for a range of another size than that of the rows, rounded up to whole words of 4 bytes, one that
    /// does not lie within the buffer or begins at no multiple of the device's `min_storage_buffer_offset_alignment`; for a
    /// buffer without the usages of [`STORAGE_USAGE`], of another device, or lent by the context's pool.
    /// [`Error::InvalidShape`] when the parts do not have all rows, or other rows than they should; [`Error::SeveralParts`] for several
    /// parts of a tensor that one buffer holds; [`Error::SizeOverflow`], [`Error::DeviceLost`].
    ///
    /// wgpu cannot tell a buffer of another `wgpu::Instance`: do not import one. It refuses a buffer that is mapped or destroyed
    /// when a recording that uses it is submitted ([`Error::Validation`]).
    pub fn import_tensor(
        &self,
        label: impl Into<Label>,
        shape: &[usize],
        dtype: DType,
        parts: &[TensorPart<'_>],
    ) -> Result<Tensor> {
        let label = label.into();
        let bytes = padded_bytes(num_bytes(&label, shape, dtype)?);
        let part_bytes = part_bytes(shape, dtype, self.caps());
        let rows_per_part = self.rows_per_part(shape, dtype)?;
        let num_rows = part_rows(shape, bytes > part_bytes).count;
        if parts.len() > 1 && bytes <= part_bytes {
            return Err(Error::SeveralParts {
                label,
                given: parts.len(),
            });
        }
        let mut stored = Vec::new();
        let mut rows = 0..0usize;
        for part in parts {
            if !stored.is_empty() && rows.end == num_rows {
                return Err(Error::InvalidShape {
                    what: label,
                    given: format!("{} parts", parts.len()),
                    need: format!("{}, which have all rows of {shape:?}", stored.len()),
                });
            }
            rows = rows.end..num_rows.min(rows.end.saturating_add(rows_per_part));
            if part.rows != rows {
                return Err(missing_rows(label, &part.rows, &rows, shape));
            }
            let before = stored.len() as u64 * part_bytes;
            let bytes = part_bytes.min(bytes - before);
            let lease = self.import_part(&label, shape, dtype, part, bytes)?;
            let offset = part.bytes.start;
            stored.push(Stored { lease, offset });
        }
        if stored.is_empty() || rows.end < num_rows {
            let next = rows.end..num_rows.min(rows.end.saturating_add(rows_per_part));
            return Err(missing_rows(label, &(0..rows.end), &next, shape));
        }
        let first = stored.remove(0);
        let storage = Storage::of_several(first, stored, part_bytes);
        Ok(Tensor::new(shape, dtype, storage))
    }

    /// Rows of each [part](Tensor::parts) but the last of a tensor of `shape` and `dtype`, as uploads, imports and calls make it; all
    /// of its rows if it has one part.
    ///
    /// ```
    /// # use dilated_attention::{Context, DType, DeviceCaps};
    /// let context = Context::dry_run(DeviceCaps::webgpu_defaults());
    /// assert_eq!(context.rows_per_part(&[1000, 64], DType::F32)?, 1000);
    /// // A buffer holds 256 MiB, and parts whole blocks of 64 tokens: 87 360 tokens of 768 elements.
    /// assert_eq!(context.rows_per_part(&[1, 200_000, 768], DType::F32)?, 87_360);
    /// # Ok::<(), dilated_attention::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::SizeOverflow`] when the bytes of the tensor exceed 64 bits.
    pub fn rows_per_part(&self, shape: &[usize], dtype: DType) -> Result<usize> {
        let bytes = padded_bytes(num_bytes("tensor", shape, dtype)?);
        let part_bytes = part_bytes(shape, dtype, self.caps());
        let rows = part_rows(shape, bytes > part_bytes);
        let row_bytes = rows.elements as u64 * dtype.bytes();
        Ok(match (row_bytes, bytes <= part_bytes) {
            (0, _) | (_, true) => rows.count,
            (row_bytes, false) => (part_bytes / row_bytes) as usize,
        })
    }

    /// Takes in one part, of `bytes` bytes.
    fn import_part(
        &self,
        label: &Label,
        shape: &[usize],
        dtype: DType,
        part: &TensorPart<'_>,
        bytes: u64,
    ) -> Result<Lease> {
        let invalid = |given: String, need: String| Error::InvalidPart {
            label: label.clone(),
            given,
            need,
        };
        let (range, buffer) = (&part.bytes, part.buffer);
        if range.end.checked_sub(range.start) != Some(bytes) {
            let need = format!(
                "{bytes} bytes for rows {:?} of {shape:?} elements of type {dtype}",
                part.rows
            );
            return Err(invalid(format!("bytes {range:?}"), need));
        }
        if range.end > buffer.size() {
            let given = format!("bytes {range:?} of {}", buffer.size());
            return Err(invalid(given, "a range within the buffer".to_owned()));
        }
        let alignment = self.caps().storage_offset_alignment;
        if !range.start.is_multiple_of(alignment) {
            let need = format!(
                "at a multiple of {alignment}, the device's min_storage_buffer_offset_alignment"
            );
            return Err(invalid(format!("it begins at byte {}", range.start), need));
        }
        if !buffer.usage().contains(STORAGE_USAGE) {
            let given = format!("its usages are {:?}", buffer.usage());
            return Err(invalid(given, format!("made with {STORAGE_USAGE:?}")));
        }
        // A dry run uses no buffer, so it may be of any device.
        if !self.is_dry() {
            if self.pool().owns(buffer) {
                let need = "the application's own: Recorder::empty makes tensors of the pool's";
                return Err(invalid("the pool has lent it".to_owned(), need.to_owned()));
            }
            self.probe(buffer)?.map_err(|refusal| {
                invalid(refusal, "a buffer of the context's device".to_owned())
            })?;
        }
        Ok(self.pool().import(label.clone(), buffer)?)
    }

    /// Whether wgpu takes the buffer for one of this device: encodes a clear of no bytes, which is never submitted. The inner error
    /// has wgpu's words.
    ///
    /// # Errors
    /// [`Error::DeviceLost`].
    fn probe(&self, buffer: &wgpu::Buffer) -> Result<std::result::Result<(), String>> {
        let watch = self.watch();
        let encode = || {
            let mut encoder =
                watch
                    .device()
                    .create_command_encoder(&wgpu::CommandEncoderDescriptor {
                        label: Some("is it this device's buffer"),
                    });
            encoder.clear_buffer(buffer, 0, Some(0));
            encoder.finish()
        };
        match scope::catch(watch, encode) {
            Ok(_) => Ok(Ok(())),
            Err(scope::Caught::Refused(reason)) => Ok(Err(reason)),
            Err(scope::Caught::OutOfMemory) => Ok(Err("no memory to look at it".to_owned())),
            Err(scope::Caught::Lost(reason)) => Err(Error::DeviceLost { reason }),
        }
    }
}

fn missing_rows(label: Label, given: &Range<usize>, need: &Range<usize>, shape: &[usize]) -> Error {
    Error::InvalidShape {
        what: label,
        given: format!("rows {given:?}"),
        need: format!("rows {need:?} of {shape:?} in the next part"),
    }
}
