//! Tensors of buffers that the application has.

use super::Context;
use crate::device::DType;
use crate::error::{Error, Result};
use crate::label::Label;
use crate::pool::STORAGE_USAGE;
use crate::scope;
use crate::tensor::{Tensor, TensorPart, num_bytes, num_rows, padded_bytes};

impl Context {
    /// A tensor in a buffer that the application has, for example one that its own shaders write. `parts` say where the rows
    /// lie. Today it is one part with all rows.
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
    /// [`Error::InvalidShape`] when the parts do not have all rows, [`Error::SeveralParts`] for more than one part,
    /// [`Error::SizeOverflow`], [`Error::DeviceLost`].
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
        let part = match parts {
            [part] => part,
            [] => return Err(missing_rows(label, 0..0, shape)),
            several => {
                return Err(Error::SeveralParts {
                    label,
                    given: several.len(),
                });
            }
        };
        if part.rows != (0..num_rows(shape)) {
            return Err(missing_rows(label, part.rows.clone(), shape));
        }
        let invalid = |given: String, need: String| Error::InvalidPart {
            label: label.clone(),
            given,
            need,
        };
        let (range, buffer) = (&part.bytes, part.buffer);
        if range.end.checked_sub(range.start) != Some(bytes) {
            let need = format!("{bytes} bytes for {shape:?} elements of type {dtype}");
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
        let lease = self.pool().import(label, buffer)?;
        Ok(Tensor::new(shape, dtype, lease, range.start))
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

fn missing_rows(label: Label, given: std::ops::Range<usize>, shape: &[usize]) -> Error {
    Error::InvalidShape {
        what: label,
        given: format!("rows {given:?}"),
        need: format!("all {} rows of {shape:?}", num_rows(shape)),
    }
}
