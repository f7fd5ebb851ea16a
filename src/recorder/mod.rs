//! Recordings: work that is recorded first and run later.
//!
//! A [`Recorder`] builds a recording: a list of plain commands and the leases they use (recording.rs). A runner runs it
//! (runner.rs): on a device at once, in slices, or through an application's encoder; or not at all, for plans.
//!
//! **Why a list and not an encoder.** The parameters of all dispatches go into *one* uniform buffer, which is copied before
//! the first pass opens, and their total size is known only at the end. Consecutive dispatches share a pass. And a recording
//! can be dropped, or built on any thread, without touching the device.

mod cost_model;
mod encode;
mod fill;
mod machine;
mod recording;
mod runner;
mod slices;

pub(crate) use cost_model::CostModel;
pub(crate) use machine::Machine;
#[cfg(feature = "dry-run")]
pub(crate) use runner::DryRun;
pub(crate) use runner::OnDevice;
pub use slices::{Progress, SliceOptions, SlicedSubmission};

use std::sync::Arc;

use crate::contents::{Contents, Fate};
use crate::device::{ByteRange, DType, Element};
use crate::error::{Error, Result};
use crate::kernels::{Access, Kernel, KernelParams};
use crate::label::Label;
use crate::pool::{Lease, STORAGE_USAGE};
use crate::pool_encoder::Submission;
use crate::readback::{Download, Readback};
use crate::tensor::{
    Storage, Stored, Tensor, check_finite, check_parts, num_bytes, padded_bytes, part_bytes,
};
use recording::{Command, LeaseIndex, Recording};

/// Work that is recorded first and run later. `Send`, so recordings may be built on any thread.
///
/// Nothing reaches the device before [`submit`](Self::submit), [`submit_in_slices`](Self::submit_in_slices), or
/// [`encode`](Self::encode) for an application that owns the encoder. So dropping a recording has no effect and gives all its
/// leases back.
///
/// **Who keeps what alive.** Until it is submitted, the recording holds one handle of every lease it uses. Staging chunks,
/// which are mapped for writing, are then pending until the device is done and they are mapped again. With `encode`, the
/// leases move into the encoder's work-done callback. They return when that submission is done, or when the encoder is
/// dropped unsubmitted, because its callbacks are dropped with it. The caller needs to keep no guard, and no lease can
/// return too early.
#[must_use = "a recording does nothing until it is submitted"]
pub struct Recorder {
    machine: Arc<Machine>,
    recording: Recording,
    num_dispatches: usize,
}

impl Recorder {
    pub(crate) fn new(machine: Arc<Machine>, label: Label) -> Self {
        Self {
            recording: Recording::new(&machine, label),
            machine,
            num_dispatches: 0,
        }
    }

    /// Submits what was recorded and waits for it, until its buffers are back. What follows is a recording of its own.
    ///
    /// # Errors
    /// As [`submit`](Self::submit), and [`Error::DeviceLost`].
    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) fn flush(&mut self) -> Result<()> {
        let next = Self::new(self.machine.clone(), self.recording.label.clone());
        std::mem::replace(self, next).submit()?.wait()
    }

    /// Leases what submitting would lease, and drops all of it with the recording: the pool has the buffers from then on.
    ///
    /// # Errors
    /// Those of leasing.
    #[cfg(all(feature = "training", not(target_arch = "wasm32")))]
    pub(crate) fn rehearse(mut self) -> Result<()> {
        self.recording.stage_params(&self.machine).map(drop)
    }

    /// The machine on which the recording will run.
    pub(crate) fn machine(&self) -> &Arc<Machine> {
        &self.machine
    }

    /// Dispatches recorded so far.
    pub fn num_dispatches(&self) -> usize {
        self.num_dispatches
    }

    /// Names of the kernels recorded so far, each once, in order of first use.
    pub fn kernel_names(&self) -> Vec<&'static str> {
        let mut names = Vec::new();
        for (kernel, _) in self.work() {
            if !names.contains(&kernel.name()) {
                names.push(kernel.name());
            }
        }
        names
    }

    /// The kernels recorded so far, each once, in order of first use.
    #[cfg(any(feature = "dry-run", feature = "testing"))]
    pub(crate) fn recorded_kernels(&self) -> Vec<Kernel> {
        self.work().into_iter().map(|(kernel, _)| kernel).collect()
    }

    /// The kernels recorded so far, each with the work of all its dispatches ([`Kernel::workgroup_work`]).
    pub(crate) fn work(&self) -> Vec<(Kernel, f64)> {
        self.recording.work()
    }

    /// A tensor whose contents are unspecified until a recorded command writes it. `shape` counts elements; the last
    /// dimension is contiguous.
    ///
    /// A tensor that is larger than the device's largest buffer lies in several ([`Tensor::parts`]).
    ///
    /// # Errors
    /// [`Error::SizeOverflow`] and the errors of [`Pool::acquire`](crate::pool::Pool::acquire); of these
    /// [`BufferTooLarge`](crate::pool::PoolError::BufferTooLarge) where a buffer does not hold even one token.
    pub fn empty(
        &mut self,
        label: impl Into<Label>,
        shape: &[usize],
        dtype: DType,
    ) -> Result<Tensor> {
        let part_bytes = part_bytes(shape, dtype, self.machine.caps());
        self.empty_in_parts(label.into(), shape, dtype, part_bytes)
    }

    /// As [`empty`](Self::empty), in one buffer: for sums and copies that kernels bind as a whole.
    pub(crate) fn undivided(
        &mut self,
        label: impl Into<Label>,
        shape: &[usize],
        dtype: DType,
    ) -> Result<Tensor> {
        self.empty_in_parts(label.into(), shape, dtype, u64::MAX)
    }

    /// As [`empty`](Self::empty), in parts of `part_bytes` bytes.
    pub(crate) fn empty_in_parts(
        &mut self,
        label: Label,
        shape: &[usize],
        dtype: DType,
        part_bytes: u64,
    ) -> Result<Tensor> {
        let bytes = padded_bytes(num_bytes(&label, shape, dtype)?);
        // Where a buffer does not hold a row, the pool says so.
        let part_bytes = if part_bytes == 0 { bytes } else { part_bytes };
        check_parts(&label, bytes, part_bytes)?;
        let mut part = |offset: u64| -> Result<Stored> {
            let lease = self.lease(label.clone(), part_bytes.min(bytes - offset))?;
            Ok(Stored { lease, offset: 0 })
        };
        let first = part(0)?;
        let mut others = Vec::new();
        let mut offset = part_bytes;
        while offset < bytes {
            others.push(part(offset)?);
            offset += part_bytes;
        }
        let tensor = Tensor::new(shape, dtype, Storage::of_several(first, others, part_bytes));
        self.poison(&tensor)?;
        Ok(tensor)
    }

    /// Tensors as by [`empty`](Self::empty), one for each of `shapes`, in one buffer if one holds them: for example q, k and v. One
    /// kernel may read several of them. But what a kernel writes must not share a buffer with what it reads
    /// ([`Error::SharedBuffer`]), so outputs need buffers of their own.
    ///
    /// ```no_run
    /// use dilated_attention::{Context, DType};
    /// let context = Context::new_blocking()?;
    /// let mut recorder = context.recorder("inputs");
    /// let shape = [1, 4096, 8, 64];
    /// let qkv = recorder.empty_together("qkv", &[&shape[..]; 3], DType::F32)?;
    /// for tensor in &qkv {
    ///     recorder.write(tensor, &vec![0.5f32; 4096 * 8 * 64])?;
    /// }
    /// assert_eq!(context.pool().stats().leases.current, 2); // and a staging buffer
    /// # Ok::<(), dilated_attention::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`empty`](Self::empty).
    pub fn empty_together(
        &mut self,
        label: impl Into<Label>,
        shapes: &[&[usize]],
        dtype: DType,
    ) -> Result<Vec<Tensor>> {
        let label = label.into();
        let overflow = || Error::SizeOverflow {
            what: label.clone(),
            given: format!("{shapes:?}"),
        };
        let alignment = self.machine.caps().storage_offset_alignment;
        let mut offsets = Vec::new();
        let mut end = 0u64;
        for shape in shapes {
            let bytes = padded_bytes(num_bytes(&label, shape, dtype)?);
            let offset = end
                .checked_next_multiple_of(alignment)
                .ok_or_else(overflow)?;
            end = offset.checked_add(bytes).ok_or_else(overflow)?;
            offsets.push(offset);
        }
        if shapes.is_empty() {
            return Ok(Vec::new());
        }
        let caps = self.machine.caps();
        let is_divided = |shape: &&[usize]| {
            let bytes = num_bytes(&label, shape, dtype);
            bytes.is_ok_and(|bytes| padded_bytes(bytes) > part_bytes(shape, dtype, caps))
        };
        if end > caps.max_buffer_bytes || shapes.iter().any(is_divided) {
            let apart = shapes.iter();
            return apart
                .map(|shape| self.empty(&label, shape, dtype))
                .collect();
        }
        let lease = self.lease(label, end)?;
        let tensors: Vec<Tensor> = shapes
            .iter()
            .zip(offsets)
            .map(|(shape, offset)| {
                Tensor::new(shape, dtype, Storage::of_one(lease.clone(), offset))
            })
            .collect();
        for tensor in &tensors {
            self.poison(tensor)?;
        }
        Ok(tensors)
    }

    fn poison(&mut self, tensor: &Tensor) -> Result<()> {
        if self.machine.pool().poisons() {
            self.fill(tensor, tensor.whole(), POISON)?;
        }
        Ok(())
    }

    /// A tensor of zeros.
    ///
    /// # Errors
    /// As [`empty`](Self::empty).
    pub fn zeros(
        &mut self,
        label: impl Into<Label>,
        shape: &[usize],
        dtype: DType,
    ) -> Result<Tensor> {
        let tensor = self.empty(label, shape, dtype)?;
        self.clear(&tensor, tensor.whole());
        Ok(tensor)
    }

    /// A tensor with the elements `data`, which are copied at once.
    ///
    /// # Errors
    /// [`Error::LengthMismatch`] when `data` does not have as many elements as `shape`, [`Error::NotFinite`] under
    /// [`Context::set_check_finite`](crate::Context::set_check_finite), [`Error::DeviceLost`] when staging memory cannot be written, and as
    /// [`empty`](Self::empty).
    pub fn upload<T: Element>(
        &mut self,
        label: impl Into<Label>,
        shape: &[usize],
        data: &[T],
    ) -> Result<Tensor> {
        let part_bytes = part_bytes(shape, T::DTYPE, self.machine.caps());
        self.upload_in_parts(label.into(), shape, data, part_bytes)
    }

    /// As [`upload`](Self::upload), in one buffer: for tables that kernels bind as a whole.
    pub(crate) fn upload_undivided<T: Element>(
        &mut self,
        label: impl Into<Label>,
        shape: &[usize],
        data: &[T],
    ) -> Result<Tensor> {
        self.upload_in_parts(label.into(), shape, data, u64::MAX)
    }

    fn upload_in_parts<T: Element>(
        &mut self,
        label: Label,
        shape: &[usize],
        data: &[T],
        part_bytes: u64,
    ) -> Result<Tensor> {
        let expected = num_bytes(&label, shape, T::DTYPE)? / T::DTYPE.bytes();
        self.check_data(&label, shape, expected, data)?;
        let tensor = self.empty_in_parts(label, shape, T::DTYPE, part_bytes)?;
        self.stage(&tensor, bytemuck::cast_slice(data))?;
        Ok(tensor)
    }

    /// Records that `tensor` holds the elements `data` from here on. They are copied at once.
    ///
    /// # Errors
    /// [`Error::WrongDType`], [`Error::ContextMismatch`], and as [`upload`](Self::upload).
    pub fn write<T: Element>(&mut self, tensor: &Tensor, data: &[T]) -> Result<()> {
        let (label, shape) = (tensor.label(), tensor.shape());
        tensor.expect(label, shape, T::DTYPE, self.machine.pool().id())?;
        self.check_data(label, shape, tensor.num_elements(), data)?;
        self.stage(tensor, bytemuck::cast_slice(data))
    }

    fn check_data<T: Element>(
        &self,
        label: &Label,
        shape: &[usize],
        expected: u64,
        data: &[T],
    ) -> Result<()> {
        if data.len() as u64 != expected {
            return Err(Error::LengthMismatch {
                label: label.into(),
                given: data.len() as u64,
                expected,
            });
        }
        if self.machine.checks_finite() {
            check_finite(label, shape, data)?;
        }
        Ok(())
    }

    /// Records a download of all elements of `tensor`, row-major, as they are at this point of the recording.
    ///
    /// # Errors
    /// [`Error::WrongDType`], [`Error::ContextMismatch`] and the errors of [`Pool::acquire`](crate::pool::Pool::acquire).
    pub fn download<T: Element>(&mut self, tensor: &Tensor) -> Result<Download<T>> {
        tensor.expect(
            tensor.label(),
            tensor.shape(),
            T::DTYPE,
            self.machine.pool().id(),
        )?;
        // The leases hold the elements, so their number fits in memory.
        self.read_back(tensor, tensor.num_elements() as usize)
    }

    /// As [`download`](Self::download), of a tensor of any type, as bytes.
    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) fn download_bytes(&mut self, tensor: &Tensor) -> Result<Download<u8>> {
        self.read_back(tensor, tensor.num_bytes() as usize)
    }

    /// Records a download of `tensor`, as `count` elements of type `T`.
    fn read_back<T: bytemuck::Pod>(
        &mut self,
        tensor: &Tensor,
        count: usize,
    ) -> Result<Download<T>> {
        // The seal needs room behind the elements of a part.
        let most_bytes = Readback::most_bytes(self.machine.caps().max_buffer_bytes);
        let mut pieces = Vec::new();
        for (lease, range) in tensor.pieces(tensor.whole()) {
            for begin in (0..range.size).step_by(most_bytes as usize) {
                let size = most_bytes.min(range.size - begin);
                let offset = range.offset + begin;
                pieces.push((lease, ByteRange { offset, size }));
            }
        }
        let mut left = tensor.num_bytes();
        let mut readbacks = Vec::new();
        for (lease, range) in pieces {
            // The tensor ends with padding.
            let readback = self.readback(tensor.label(), range.size.min(left))?;
            left = left.saturating_sub(range.size);
            if tensor.num_elements() > 0 {
                self.reads(tensor);
                let from = self.recording.hold(lease);
                let to = self.recording.hold(readback.lease());
                self.recording.commands.push(Command::Copy {
                    from,
                    from_offset: range.offset,
                    to,
                    to_offset: 0,
                    bytes: range.size,
                });
            }
            self.seal(&readback)?;
            readbacks.push(readback);
        }
        // At least one: a tensor without elements has bytes of padding.
        let first = readbacks.remove(0);
        Ok(Download::new(first, readbacks, count))
    }

    /// A readback buffer for `bytes` bytes and the seal that follows them (see [`readback`](crate::readback)).
    fn readback(&self, label: impl Into<Label>, bytes: u64) -> Result<Arc<Readback>> {
        let machine = &self.machine;
        Readback::lease_of(machine.pool(), machine.watch(), &label.into(), bytes)
    }

    /// Records the write of the seal, which marks the bytes of `readback` as complete.
    fn seal(&mut self, readback: &Arc<Readback>) -> Result<()> {
        let to = self.recording.hold(readback.lease());
        self.stage_at(to, readback.seal_offset(), &readback.seal())?;
        self.recording
            .readbacks
            .push((readback.clone(), self.recording.commands.len()));
        Ok(())
    }

    /// A buffer for kernels: the smallest fitting one that only this recording still holds, else one from the pool. (Taking
    /// the first fitting one would let a small, long-lived tensor occupy a large buffer that is needed again.)
    fn lease(&mut self, label: Label, bytes: u64) -> Result<Lease> {
        let pool = self.machine.pool().clone();
        match pool.reuse(&mut self.recording.held, &label, bytes, STORAGE_USAGE)? {
            Some(lease) => Ok(lease),
            None => Ok(pool.acquire(label, bytes, STORAGE_USAGE)?),
        }
    }

    /// Notes that the next command reads `tensor` as it is now. Bindings for reading do this by themselves. Call it before a
    /// kernel that adds to a binding or changes it in place.
    pub(crate) fn reads(&mut self, tensor: &Tensor) {
        // A tensor without elements is not read.
        if tensor.num_elements() > 0 {
            self.recording.tracker.read(tensor.contents());
        }
    }

    /// Notes that the next command writes `tensor`.
    fn writes(&mut self, tensor: &Tensor) {
        let fills = !tensor.is_view();
        self.recording
            .tracker
            .write(tensor.contents(), fills, self.recording.commands.len());
    }

    /// Notes that the next command needs a recording that has written `contents`.
    #[cfg(feature = "models")]
    pub(crate) fn needs(&mut self, contents: &Arc<Contents>) {
        self.recording.tracker.read(contents);
    }

    /// Notes that the last command has written `contents`, as a whole if it `fills` them.
    pub(crate) fn wrote(&mut self, contents: &Arc<Contents>, fills: bool) {
        let last = self.recording.commands.len().saturating_sub(1);
        self.recording.tracker.write(contents, fills, last);
    }

    /// Records that `tensor` begins with `bytes`, whole words.
    ///
    /// # Errors
    /// [`Error::LengthMismatch`] for more bytes than it has; as [`upload`](Self::upload).
    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) fn write_bytes(&mut self, tensor: &Tensor, bytes: &[u8]) -> Result<()> {
        if bytes.len() as u64 > tensor.num_bytes() {
            return Err(Error::LengthMismatch {
                label: tensor.label().clone(),
                given: bytes.len() as u64 / tensor.dtype().bytes(),
                expected: tensor.num_elements(),
            });
        }
        self.stage(tensor, bytes)
    }

    /// Copies `bytes` to staging memory now and records their copy to `tensor`.
    fn stage(&mut self, tensor: &Tensor, bytes: &[u8]) -> Result<()> {
        let first = self.recording.commands.len();
        let mut left = bytes;
        for (lease, range) in tensor.pieces(tensor.whole()) {
            let to = self.recording.hold(lease);
            // The tensor ends with padding, which is not staged.
            let (piece, behind) = left.split_at(left.len().min(range.size as usize));
            if let Err(error) = self.stage_at(to, range.offset, piece) {
                // Not a part of the tensor alone.
                self.recording.commands.truncate(first);
                return Err(error);
            }
            left = behind;
        }
        let fills = !tensor.is_view();
        self.recording
            .tracker
            .write(tensor.contents(), fills, first);
        self.wrote(tensor.contents(), fills);
        Ok(())
    }

    fn stage_at(&mut self, to: LeaseIndex, to_offset: u64, bytes: &[u8]) -> Result<()> {
        self.recording.stage(&self.machine, to, to_offset, bytes)
    }

    /// Records a copy of the bytes `range` of `from` to `to`, at `to_offset`. The tensors lie in different buffers. All
    /// offsets and ends are multiples of 4.
    #[cfg(any(feature = "models", not(target_arch = "wasm32")))]
    pub(crate) fn copy(&mut self, from: &Tensor, range: ByteRange, to: &Tensor, to_offset: u64) {
        if range.size == 0 {
            return;
        }
        self.reads(from);
        self.writes(to);
        let mut at = to_offset;
        for (from, from_range) in from.pieces(range) {
            let target = ByteRange {
                offset: at,
                size: from_range.size,
            };
            at += from_range.size;
            let from = self.recording.hold(from);
            let mut from_offset = from_range.offset;
            for (to, to_range) in to.pieces(target) {
                let to = self.recording.hold(to);
                self.recording.commands.push(Command::Copy {
                    from,
                    from_offset,
                    to,
                    to_offset: to_range.offset,
                    bytes: to_range.size,
                });
                from_offset += to_range.size;
            }
        }
        self.wrote(to.contents(), !to.is_view());
    }

    /// Records that the bytes `range` of `tensor` (both ends multiples of 4) are set to zero.
    pub(crate) fn clear(&mut self, tensor: &Tensor, range: ByteRange) {
        if range.size > 0 {
            self.writes(tensor);
            for (lease, range) in tensor.pieces(range) {
                let to = self.recording.hold(lease);
                self.recording.commands.push(Command::Clear { to, range });
            }
            self.wrote(tensor.contents(), !tensor.is_view());
        }
    }

    /// Records with `record` what must happen as a whole: a sliced submission submits all of it in one slice, so that cancelling
    /// leaves all of it undone or none.
    #[cfg(feature = "training")]
    pub(crate) fn in_one_slice<T>(
        &mut self,
        record: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<T> {
        let begin = self.recording.commands.len();
        let recorded = record(self);
        let end = self.recording.commands.len();
        // What was recorded so within this belongs to it.
        let uncut = &mut self.recording.uncut;
        uncut.retain(|part| part.start < begin);
        if begin < end {
            uncut.push(begin..end);
        }
        recorded
    }

    /// Records one dispatch of `kernel` over `grid` workgroups with storage bindings in the order of
    /// [`KernelSpec::bindings`](crate::kernels::KernelSpec::bindings).
    pub(crate) fn dispatch<P: KernelParams>(
        &mut self,
        kernel: impl Into<Kernel>,
        bindings: &[(&Tensor, ByteRange)],
        params: &P,
        grid: [u32; 2],
    ) -> Result<()> {
        self.dispatch_bytes(kernel.into(), bindings, bytemuck::bytes_of(params), grid)
    }

    /// As [`dispatch`](Self::dispatch), with the parameters as bytes.
    pub(crate) fn dispatch_bytes(
        &mut self,
        kernel: Kernel,
        bindings: &[(&Tensor, ByteRange)],
        params: &[u8],
        grid: [u32; 2],
    ) -> Result<()> {
        expect_apart(kernel, bindings)?;
        self.machine.runner.prepare(&self.machine, kernel)?;
        let alignment = self.machine.caps().uniform_offset_alignment as usize;
        let params_offset = self.recording.params.len().next_multiple_of(alignment);
        let Ok(params_offset_u32) = u32::try_from(params_offset) else {
            return Err(Error::SizeOverflow {
                what: "parameters of one recording".into(),
                given: format!("{params_offset} bytes"),
            });
        };
        self.recording.params.resize(params_offset, 0);
        self.recording.params.extend_from_slice(params);
        for (access, (tensor, _)) in kernel.bindings().iter().zip(bindings) {
            match access {
                Access::Read => self.reads(tensor),
                Access::ReadWrite => self.writes(tensor),
            }
        }
        let bindings = bindings
            .iter()
            .map(|&(tensor, range)| {
                let (lease, range) = tensor.stored(range);
                (self.recording.hold(lease), range)
            })
            .collect();
        self.num_dispatches += 1;
        self.recording.commands.push(Command::Dispatch {
            kernel,
            bindings,
            params_offset: params_offset_u32,
            grid,
        });
        Ok(())
    }

    /// Submits the recording. From now on its leases may be lent again, because the commands of the next lease are submitted
    /// later.
    ///
    /// # Errors
    /// [`Error::NotWritten`] if it reads a tensor that nothing submitted before has written;
    /// [`PoolError::OutOfMemory`](crate::pool::PoolError::OutOfMemory) or
    /// [`PoolError::BudgetExceeded`](crate::pool::PoolError::BudgetExceeded) for the buffers of parameters; [`Error::DeviceLost`];
    /// [`Error::Validation`] if wgpu refuses the commands, which it also does when memory runs out. After an error nothing was
    /// submitted, and the recording is gone.
    pub fn submit(mut self) -> Result<Submission> {
        let submitted = self.try_submit();
        match &submitted {
            Ok(_) => self.recording.tracker.submitted(),
            Err(_) => self.recording.tracker.failed(Fate::Refused),
        }
        submitted
    }

    fn try_submit(&mut self) -> Result<Submission> {
        self.machine.watch().check()?;
        self.recording.tracker.check()?;
        self.machine
            .runner
            .submit(&self.machine, &mut self.recording)
    }

    /// Turns the recording into a [`SlicedSubmission`], which submits it in short slices so that others can use the queue in
    /// between. This call submits nothing yet.
    pub fn submit_in_slices(self, options: SliceOptions) -> SlicedSubmission {
        SlicedSubmission::new(self.machine, self.recording, options)
    }

    /// Appends the recording to the caller's encoder. The caller submits it to the context's queue and polls the device, for
    /// example with [`Context::poll`](crate::Context::poll) once a frame. Leases return when that submission is done or the
    /// encoder is dropped.
    ///
    /// Recordings that are submitted before that encoder must not touch the same tensors: the order of submission is the
    /// order of execution, and only the caller knows when the encoder is submitted. As soon as this call has returned, later
    /// recordings may read what it writes. If the encoder is dropped, or wgpu refuses to run it, they may not any more, and
    /// its downloads are [`Error::DownloadAbandoned`].
    ///
    /// # Errors
    /// As [`submit`](Self::submit), but if wgpu refuses a command, that shows when the caller finishes the encoder, in the
    /// caller's own error scope. After an error the encoder holds a part of the recording, so drop it.
    ///
    /// `encoder` must belong to the context's device, which wgpu cannot check here. wgpu refuses an encoder of another
    /// device when the caller finishes it. With one of another `wgpu::Instance`, wgpu either panics, which is
    /// [`Error::Validation`], or uses other buffers that happen to have the same numbers.
    pub fn encode(mut self, encoder: &mut wgpu::CommandEncoder) -> Result<()> {
        let encoded = self.try_encode(encoder);
        if encoded.is_err() {
            self.recording.tracker.failed(Fate::Refused);
        }
        encoded
    }

    fn try_encode(&mut self, encoder: &mut wgpu::CommandEncoder) -> Result<()> {
        self.machine.watch().check()?;
        self.recording.tracker.check()?;
        // Some download tells whether the encoder ran: one of this recording, else an empty one.
        if self.recording.readbacks.is_empty() {
            let receipt = self.readback("receipt", 0)?;
            self.seal(&receipt)?;
        }
        let runner = self.machine.runner;
        runner.encode(&self.machine, &mut self.recording, encoder)
    }
}

impl std::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recorder")
            .field("label", &self.recording.label)
            .field("commands", &self.recording.commands.len())
            .field("held", &self.recording.held)
            .finish_non_exhaustive()
    }
}

/// Whether no buffer is read and written by one dispatch.
///
/// # Errors
/// [`Error::SharedBuffer`].
fn expect_apart(kernel: Kernel, bindings: &[(&Tensor, ByteRange)]) -> Result<()> {
    let accesses = kernel.bindings();
    let of = |wanted: Access| {
        let bound = accesses.iter().zip(bindings);
        bound
            .filter(move |(access, _)| **access == wanted)
            .map(|(_, (tensor, range))| (*tensor, tensor.stored(*range).0.buffer()))
    };
    for (written, buffer) in of(Access::ReadWrite) {
        if let Some((read, _)) = of(Access::Read).find(|(_, other)| *other == buffer) {
            return Err(Error::SharedBuffer {
                read: read.label().clone(),
                written: written.label().clone(),
            });
        }
    }
    Ok(())
}

/// Bits of a quiet NaN, with which poison fills buffers.
const POISON: u32 = 0x7fc0_dead;
