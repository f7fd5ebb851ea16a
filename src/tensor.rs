//! Arrays on the device: a shape, an element type and leased storage.
//!
//! The storage is one leased buffer, a range of one (tensors made [together](crate::Recorder::empty_together)) or, of a tensor that
//! is larger than the device's largest buffer, several: its *parts*, all of which but the last have the same number of bytes
//! ([`DeviceCaps::part_bytes`]). Everything but this module and the recorder counts in bytes of the tensor. A plan binds windows, byte
//! ranges of one part that one binding may cover; the recorder asks [`Tensor::stored`] where they lie.

use std::ops::Range;
use std::sync::Arc;

use crate::contents::Contents;
use crate::device::{ByteRange, DType, DeviceCaps, Element};
use crate::error::{Error, Result};
use crate::label::Label;
use crate::pool::Lease;

/// An array on the device, row-major. Clones share the storage, which goes back to the pool with the last of them (and
/// not before every recording that uses it was submitted).
///
/// A tensor knows whether what writes it was submitted. A recording that reads one which was never written, or whose writer is
/// not submitted yet, was dropped or was cancelled on the way, is refused when it is submitted:
/// [`Error::NotWritten`].
///
/// # In an application's own shaders
///
/// [`Tensor::parts`] says which bytes of which buffers hold a tensor, for shaders of the application's own. In the other
/// direction, [`Context::import_tensor`](crate::Context::import_tensor) makes a tensor of a buffer that the application has.
/// All commands go to one queue, the context's, and nothing waits for the host.
///
/// ```no_run
/// use dilated_attention::{Context, Tensor, wgpu};
///
/// /// Colours the tokens of `embeddings` on the screen, by a pipeline of the application's.
/// fn draw(context: &Context, embeddings: &Tensor, colour: &wgpu::ComputePipeline) -> wgpu::CommandBuffer {
///     let device = context.device();
///     let mut encoder = device.create_command_encoder(&Default::default());
///     for part in embeddings.parts() {
///         let group = device.create_bind_group(&wgpu::BindGroupDescriptor {
///             label: Some("embeddings"),
///             layout: &colour.get_bind_group_layout(0),
///             entries: &[wgpu::BindGroupEntry {
///                 binding: 0,
///                 resource: part.binding(),
///             }],
///         });
///         let mut pass = encoder.begin_compute_pass(&Default::default());
///         pass.set_pipeline(colour);
///         pass.set_bind_group(0, &group, &[]);
///         pass.dispatch_workgroups(part.rows.len() as u32, 1, 1);
///     }
///     encoder.finish() // submit it before `embeddings` is dropped
/// }
/// ```
///
/// **Reading.** Commands may read a tensor when the recording that writes it was submitted before them: of a sliced
/// submission, all slices; of a recording in an encoder, that encoder. Keep a clone of the tensor until the commands are
/// submitted. Without one, the pool may lend the buffer to work that is submitted before them.
///
/// **Writing.** Commands may write a tensor when the recording in which it was made was submitted before them (an imported
/// tensor has none), and while no sliced submission that uses it is under way. Then call [`Tensor::mark_written`], for the library
/// does not see what other commands do, and refuses to read a tensor that nothing wrote ([`Error::NotWritten`]). Submit them
/// before any recording that reads it. Again, keep a clone until they are submitted.
///
/// **One buffer, two uses.** WebGPU forbids one dispatch to read a buffer and to write it, even where the bytes are apart.
/// Tensors that were made together, parameters of a model, and tensors imported from one buffer share buffers; equal
/// [`TensorPart::buffer`]s tell. Bind both for reading, both as `read_write`, or make what is written separately. The library's own
/// calls say so by [`Error::SharedBuffer`].
///
/// **Offsets.** Each part begins at a multiple of the device's `min_storage_buffer_offset_alignment`. It may be larger than one
/// binding may be (`max_storage_buffer_binding_size`); then bind ranges of it in turn.
#[derive(Clone, Debug)]
pub struct Tensor {
    shape: Box<[usize]>,
    dtype: DType,
    storage: Storage,
    /// Bytes of the storage before the elements. Of a tensor in several parts that kernels bind it is 0.
    offset: u64,
    contents: Arc<Contents>,
    /// Whether the contents are those of a larger tensor.
    is_view: bool,
}

/// Where bytes lie, in order.
#[derive(Clone, Debug)]
pub(crate) struct Storage {
    /// The first part, or all.
    first: Stored,
    /// The others, if there are several.
    others: Option<Arc<[Stored]>>,
    /// Bytes of each part but the last; larger than the only one.
    part_bytes: u64,
}

/// A part of a storage: the bytes of a buffer from `offset` on, which bindings may have.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub lease: Lease,
    pub offset: u64,
}

impl Storage {
    /// Bytes in one buffer.
    pub fn of_one(lease: Lease, offset: u64) -> Self {
        Self {
            first: Stored { lease, offset },
            others: None,
            part_bytes: u64::MAX,
        }
    }

    /// Bytes in several buffers, of which each but the last holds `part_bytes`.
    pub fn of_several(first: Stored, others: Vec<Stored>, part_bytes: u64) -> Self {
        match others.is_empty() {
            true => Self::of_one(first.lease, first.offset),
            false => Self {
                first,
                others: Some(others.into()),
                part_bytes,
            },
        }
    }

    /// The part that holds byte `at`, and the byte's place in it.
    fn find(&self, at: u64) -> (&Stored, u64) {
        let others = self.others.as_deref().unwrap_or_default();
        match (at / self.part_bytes) as usize {
            0 => (&self.first, at),
            // No byte lies behind the last part, but an empty range may.
            number => {
                let number = number.min(others.len());
                let part = others.get(number.wrapping_sub(1)).unwrap_or(&self.first);
                (part, at - number as u64 * self.part_bytes)
            }
        }
    }
}

/// Most parts of a tensor: with WebGPU's default buffers 2 TiB. Beyond what devices have, so that a wrong size is an error at once.
const MAX_PARTS: u64 = 1 << 13;

/// Checks that `bytes` in parts of `part_bytes` are not more parts than a tensor may have.
///
/// # Errors
/// [`Error::InvalidShape`].
pub(crate) fn check_parts(label: &Label, bytes: u64, part_bytes: u64) -> Result<()> {
    match bytes.div_ceil(part_bytes.max(1)) {
        0..=MAX_PARTS => Ok(()),
        parts => Err(Error::InvalidShape {
            what: label.clone(),
            given: format!("{bytes} bytes, {parts} buffers of {part_bytes} bytes"),
            need: format!("at most {MAX_PARTS} buffers"),
        }),
    }
}

/// Bytes of each part but the last of a new tensor of `shape`; 0 where a buffer does not hold a token.
pub(crate) fn part_bytes(shape: &[usize], dtype: DType, caps: &DeviceCaps) -> u64 {
    match shape {
        // Vectors are bound as a whole, such as biases, wherever a buffer holds them.
        [] | [_] => caps.largest_part_bytes(dtype.bytes()),
        // Where this overflows, no buffer holds a token.
        _ => caps.part_bytes(token_elements(shape).saturating_mul(dtype.bytes())),
    }
}

/// Elements that no part divides: of (rows, width) a row; of (item, token, ...) all of a token, heads included.
fn token_elements(shape: &[usize]) -> u64 {
    let elements = match shape {
        [] | [_] => &[],
        [_, width] => std::slice::from_ref(width),
        [_, _, of_token @ ..] => of_token,
    };
    let elements = elements.iter().map(|&d| d as u64);
    elements.fold(1, u64::saturating_mul)
}

/// A part of a tensor: a range of its rows, which lies in one buffer. [`Tensor`] says who may use it when.
///
/// ```
/// # use dilated_attention::{Context, DType, DeviceCaps};
/// # let context = Context::dry_run(DeviceCaps::webgpu_defaults());
/// let mut recorder = context.recorder("rows");
/// let tensor = recorder.empty("q", &[1, 100, 8, 64], DType::F16)?; // (batch, token, head, element)
/// let parts: Vec<_> = tensor.parts().collect();
/// assert_eq!(parts.len(), 1);
/// assert_eq!(parts[0].rows, 0..100 * 8); // a row is one head of one token
/// assert_eq!(parts[0].bytes, 0..2 * 100 * 8 * 64);
/// # Ok::<(), dilated_attention::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorPart<'a> {
    /// The buffer. Other tensors may lie in it, too.
    pub buffer: &'a wgpu::Buffer,
    /// The bytes of the buffer that hold the rows, one after the other, rounded up to whole words of 4 bytes. (A tensor without
    /// elements has 16 bytes, so that every kernel can bind it: the widest elements of a shader's array are vec4s of f32.)
    pub bytes: Range<u64>,
    /// The rows that the part holds. A row is the last dimension of the shape, and all before it count rows: of a tensor (batch,
    /// token, head, element), row `(item * tokens + token) * heads + head`. Of a tensor with one dimension that lies in several
    /// parts, each element is a row.
    pub rows: Range<usize>,
}

impl<'a> TensorPart<'a> {
    /// All bytes of `buffer`, as `rows` rows: for [`Context::import_tensor`](crate::Context::import_tensor) of a buffer that holds
    /// one tensor and nothing else.
    pub fn whole(buffer: &'a wgpu::Buffer, rows: usize) -> Self {
        Self {
            buffer,
            bytes: 0..buffer.size(),
            rows: 0..rows,
        }
    }

    /// All bytes of the part, to be bound.
    pub fn binding(&self) -> wgpu::BindingResource<'a> {
        wgpu::BindingResource::Buffer(wgpu::BufferBinding {
            buffer: self.buffer,
            offset: self.bytes.start,
            size: wgpu::BufferSize::new(self.bytes.end - self.bytes.start),
        })
    }
}

impl Tensor {
    pub(crate) fn new(shape: &[usize], dtype: DType, storage: Storage) -> Self {
        Self {
            shape: shape.into(),
            dtype,
            contents: Contents::new(storage.first.lease.label().clone()),
            storage,
            offset: 0,
            is_view: false,
        }
    }

    /// Some elements of the tensor as a tensor of its own, from the byte `offset` on, a multiple of 4. Kernels can bind it only where
    /// that is 0, or a multiple of the device's alignment in a tensor of one part; copies need no more.
    #[cfg(any(feature = "models", not(target_arch = "wasm32")))]
    pub(crate) fn view(&self, shape: &[usize], offset: u64) -> Self {
        Self {
            shape: shape.into(),
            dtype: self.dtype,
            storage: self.storage.clone(),
            offset: self.offset + offset,
            contents: self.contents.clone(),
            is_view: true,
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

    /// Where the tensor lies, for shaders of the application's own: its parts, in the order of their rows. A tensor has several if it
    /// is larger than the device's largest buffer, less what is no whole block of 64 tokens; all of them but the last have the same
    /// number of rows. Tokens are not divided:
    /// all heads of a token lie in one part.
    pub fn parts(&self) -> impl ExactSizeIterator<Item = TensorPart<'_>> {
        let rows = part_rows(&self.shape, !self.is_undivided());
        let (row_bytes, num_rows) = (rows.elements as u64 * self.dtype.bytes(), rows.count);
        let mut begin = 0;
        let pieces: Vec<_> = self
            .pieces(self.whole())
            .map(|(stored, range)| {
                begin += range.size;
                let (first, end) = (begin - range.size, begin);
                // The last part has padding behind its rows.
                let row = |byte: u64| byte.checked_div(row_bytes).unwrap_or(0) as usize;
                TensorPart {
                    buffer: stored.buffer(),
                    bytes: range.offset..range.offset + range.size,
                    rows: row(first)..row(end).min(num_rows),
                }
            })
            .collect();
        pieces.into_iter()
    }

    /// The part of a tensor that has one alone.
    ///
    /// # Errors
    /// [`Error::SeveralParts`] of a tensor in several buffers.
    pub fn only_part(&self) -> Result<TensorPart<'_>> {
        let mut parts = self.parts();
        let given = parts.len();
        let several = || Error::SeveralParts {
            label: self.label().clone(),
            given,
        };
        parts.next().filter(|_| given == 1).ok_or_else(several)
    }

    /// Tells the library that commands of the application's own have written the tensor: that its elements are theirs for all
    /// recordings that are submitted after those commands. [`Tensor`](Self#in-an-applications-own-shaders) says when they may. Of
    /// one of a model's parameters nothing changes, because parameters are written when they are made.
    pub fn mark_written(&self) {
        if !self.is_view {
            self.contents.mark_written();
        }
    }

    /// What the tensor is for.
    pub fn label(&self) -> &Label {
        self.storage.first.lease.label()
    }

    fn pool_id(&self) -> u64 {
        self.storage.first.lease.pool_id()
    }

    /// Whether it was written.
    pub(crate) fn contents(&self) -> &Arc<Contents> {
        &self.contents
    }

    /// Whether the contents are those of a larger tensor.
    pub(crate) fn is_view(&self) -> bool {
        self.is_view
    }

    /// Bytes of each part but the last.
    pub(crate) fn part_bytes(&self) -> u64 {
        self.storage.part_bytes
    }

    /// Whether the tensor lies in one buffer.
    pub(crate) fn is_undivided(&self) -> bool {
        self.storage.others.is_none()
    }

    /// The lease that holds the bytes `range` of this tensor, which lie in one part, and the range of its buffer.
    pub(crate) fn stored(&self, range: ByteRange) -> (&Lease, ByteRange) {
        let (part, at) = self.storage.find(self.offset + range.offset);
        let offset = part.offset + at;
        (&part.lease, ByteRange { offset, ..range })
    }

    /// The bytes `range` of this tensor, cut where its parts end: leases and ranges of their buffers.
    pub(crate) fn pieces(&self, range: ByteRange) -> impl Iterator<Item = (&Lease, ByteRange)> {
        let end = range.offset + range.size;
        let mut begin = range.offset;
        let mut is_first = true;
        std::iter::from_fn(move || {
            // An empty range is one piece.
            if begin >= end && !is_first {
                return None;
            }
            is_first = false;
            let stop = self.part_end(begin).min(end);
            let size = stop - begin;
            let piece = ByteRange {
                offset: begin,
                size,
            };
            begin = stop;
            Some(self.stored(piece))
        })
    }

    /// Byte of this tensor at which the part of byte `at` ends.
    fn part_end(&self, at: u64) -> u64 {
        let part_bytes = self.storage.part_bytes;
        let number = (self.offset + at) / part_bytes;
        (number + 1).saturating_mul(part_bytes) - self.offset
    }

    /// All bytes of the tensor, in whole words; of a tensor without elements [`EMPTY_BYTES`].
    pub(crate) fn whole(&self) -> ByteRange {
        ByteRange {
            offset: 0,
            size: padded_bytes(self.num_bytes()),
        }
    }

    /// Whether this tensor is `what` of shape `shape` and type `dtype` on the context with pool `pool_id`.
    pub(crate) fn expect(
        &self,
        what: impl Into<Label>,
        shape: &[usize],
        dtype: DType,
        pool_id: u64,
    ) -> Result<()> {
        if self.pool_id() != pool_id {
            return Err(Error::ContextMismatch {
                what: what.into(),
                given: self.pool_id(),
                expected: pool_id,
            });
        }
        if self.dtype != dtype {
            return Err(Error::WrongDType {
                what: what.into(),
                given: self.dtype,
                need: dtype,
            });
        }
        if *self.shape != *shape {
            return Err(Error::InvalidShape {
                what: what.into(),
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
pub(crate) fn num_bytes(label: impl Into<Label>, shape: &[usize], dtype: DType) -> Result<u64> {
    shape
        .iter()
        .try_fold(dtype.bytes(), |bytes, &d| bytes.checked_mul(d as u64))
        // With the padding of a buffer, too.
        .filter(|bytes| *bytes <= u64::MAX - EMPTY_BYTES)
        .ok_or_else(|| Error::SizeOverflow {
            what: label.into(),
            given: format!("{shape:?} elements of {} bytes", dtype.bytes()),
        })
}

/// How parts count rows.
pub(crate) struct PartRows {
    /// Elements of a row.
    pub elements: usize,
    /// Rows of the tensor.
    pub count: usize,
}

/// How the parts of a tensor of `shape` count rows, whose bytes do not overflow and which `is_divided` or has one part.
pub(crate) fn part_rows(shape: &[usize], is_divided: bool) -> PartRows {
    let (elements, count) = match shape {
        [] => (1, 1),
        [0] => (0, 0),
        [count] if is_divided => (1, *count),
        [.., 0] => (0, 0),
        [before @ .., width] => (*width, before.iter().product()),
    };
    PartRows { elements, count }
}

/// Bytes of a tensor without elements: one vec4 of f32. A binding must hold at least one element of the array that a shader
/// declares, even where the shader reads none: an empty sum still has factors.
pub(crate) const EMPTY_BYTES: u64 = 16;

/// Bytes that `bytes` of elements take in a buffer.
pub(crate) fn padded_bytes(bytes: u64) -> u64 {
    match bytes {
        0 => EMPTY_BYTES,
        _ => bytes.next_multiple_of(4),
    }
}

/// Whether all of `data`, elements of a tensor of `shape`, are finite.
///
/// # Errors
/// [`Error::NotFinite`] names the first that is not.
pub(crate) fn check_finite<T: Element>(label: &Label, shape: &[usize], data: &[T]) -> Result<()> {
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
        what: label.into(),
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
        what: what.into(),
        given: given.to_string(),
        need: match count.and_then(|count| count.checked_mul(size_of::<T>())) {
            Some(bytes) => format!(
                "less: a plan stands on an input of that size on the host, and this machine has no {bytes} bytes for it"
            ),
            None => "less: its bytes overflow the addresses of this machine".to_owned(),
        },
    })
}
