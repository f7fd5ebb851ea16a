//! Commands of an application's own over leases of a [`Pool`].
//!
//! A pool lends a buffer again as soon as its lease is dropped, because the commands of the next lease are submitted later
//! ([`pool`](crate::pool)). A program that records commands itself has to keep that order: a lease that is dropped before the
//! commands that use it are submitted may be lent to work that is submitted before them. A [`PoolEncoder`] sees to it. It holds
//! a handle of every lease that is given to it until its commands are submitted, brings bytes to the device and back, and counts
//! the submission for the pool.
//!
//! ```
//! # fn main() -> dilated_attention::Result<()> {
//! use dilated_attention::pool::{Pool, PoolOptions, STORAGE_USAGE};
//! # let (device, queue) = dilated_attention::wgpu::Device::noop(&Default::default());
//! let pool = Pool::new(&device, PoolOptions::default().with_budget_bytes(64 << 20));
//! let numbers = pool.acquire("numbers", 4096, STORAGE_USAGE)?;
//! let copy = pool.acquire("copy", 4096, STORAGE_USAGE)?;
//! let mut work = pool.encoder(&queue, "copy")?;
//! work.upload(&numbers, 0, &[0.5f32; 1024])?;
//! work.keep(&copy);
//! work.encoder() // compute passes go here, too
//!     .copy_buffer_to_buffer(numbers.buffer(), 0, copy.buffer(), 0, 4096);
//! let result = work.download::<f32>(&copy)?;
//! work.submit()?; // from here on, the leases may be dropped
//! # drop((numbers, copy, result));
//! # Ok(())
//! # }
//! ```

mod staging;
mod submission;

pub use submission::Submission;

pub(crate) use staging::{StagingChunk, Unmapped, map_again_on_submit, stage, write_mapped};
pub(crate) use submission::{Destination, refused};

use std::fmt;
use std::sync::Arc;

use crate::error::{Error, PoolError, Result};
use crate::label::Label;
use crate::pool::{Lease, Pool};
use crate::readback::{Download, Readback};
use crate::scope;
use crate::watch::DeviceWatch;

/// A command encoder that keeps the leases which its commands use; see the [module](self) documentation. Dropping it records
/// nothing and gives everything back.
#[must_use = "nothing runs before it is submitted"]
pub struct PoolEncoder {
    pool: Pool,
    watch: Arc<DeviceWatch>,
    queue: wgpu::Queue,
    label: Label,
    encoder: wgpu::CommandEncoder,
    held: Vec<Lease>,
    staging: Vec<StagingChunk>,
    readbacks: Readbacks,
}

impl Pool {
    /// An encoder for commands of the application's own that use leases of this pool. `queue` is that of the pool's device.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a pool over a [`BufferSource`](crate::pool::BufferSource) of the application's, which may
    /// have no device; [`Error::DeviceLost`], and [`Error::Validation`] if wgpu makes no encoder.
    pub fn encoder(&self, queue: &wgpu::Queue, label: impl Into<Label>) -> Result<PoolEncoder> {
        let label = label.into();
        let watch = self.watch().ok_or_else(|| Error::Unsupported {
            what: format!("the commands of '{label}'"),
            given: "its pool has a buffer source of its own".to_owned(),
            need: "a pool of a device: Pool::new, or Context::pool".to_owned(),
        })?;
        let descriptor = wgpu::CommandEncoderDescriptor {
            label: Some(&label),
        };
        let encoder = scope::catch(watch, || watch.device().create_command_encoder(&descriptor))
            .map_err(|caught| refused(self, &label, caught))?;
        Ok(PoolEncoder {
            pool: self.clone(),
            watch: watch.clone(),
            queue: queue.clone(),
            label,
            encoder,
            held: Vec::new(),
            staging: Vec::new(),
            readbacks: Readbacks(Vec::new()),
        })
    }
}

impl PoolEncoder {
    /// wgpu's encoder, for passes and copies. Give every lease that they use to [`keep`](Self::keep). What is wrong with the
    /// commands shows when they are [submitted](Self::submit).
    pub fn encoder(&mut self) -> &mut wgpu::CommandEncoder {
        &mut self.encoder
    }

    /// Keeps `lease` from going back before the commands are submitted.
    pub fn keep(&mut self, lease: &Lease) {
        self.held.push(lease.clone());
    }

    /// Copies `data` into staging memory now, and records their copy into `lease` from byte `offset` on. Keeps the lease,
    /// which needs `COPY_DST`.
    ///
    /// # Errors
    /// [`Error::InvalidShape`] where the bytes do not lie within the lease, or begin or end within a word of 4 bytes;
    /// [`PoolError::InvalidUsage`] for a lease without `COPY_DST`; [`Error::ContextMismatch`] for a lease of another pool; those
    /// of [`Pool::acquire`], for staging memory.
    pub fn upload<T: bytemuck::Pod>(
        &mut self,
        lease: &Lease,
        offset: u64,
        data: &[T],
    ) -> Result<()> {
        // Types without bytes have none to copy.
        let bytes: &[u8] = bytemuck::try_cast_slice(data).unwrap_or_default();
        let size = bytes.len() as u64;
        let needs = (wgpu::BufferUsages::COPY_DST, "an upload needs COPY_DST");
        self.expect_own(lease, needs)?;
        let end = offset.checked_add(size);
        let fits = end.is_some_and(|end| end <= lease.requested_bytes());
        if !fits || !offset.is_multiple_of(4) || !size.is_multiple_of(4) {
            return Err(Error::InvalidShape {
                what: lease.label().clone(),
                given: format!("an upload of {size} bytes from byte {offset} on"),
                need: format!(
                    "whole words of 4 bytes within the lease's {} bytes",
                    lease.requested_bytes()
                ),
            });
        }
        self.stage(lease, offset, bytes)?;
        self.keep(lease);
        Ok(())
    }

    /// Records a download of the bytes of `lease` that were asked for, as they are at this point of the commands: as many
    /// whole elements as fit. Keeps the lease, which needs `COPY_SRC`.
    ///
    /// # Errors
    /// [`PoolError::InvalidUsage`] for a lease without `COPY_SRC`; [`Error::ContextMismatch`] for a lease of another pool; those
    /// of [`Pool::acquire`], for the buffer to read from.
    pub fn download<T: bytemuck::Pod>(&mut self, lease: &Lease) -> Result<Download<T>> {
        let needs = (wgpu::BufferUsages::COPY_SRC, "a download needs COPY_SRC");
        self.expect_own(lease, needs)?;
        let bytes = lease.requested_bytes();
        let readback = Readback::lease_of(&self.pool, &self.watch, lease.label(), bytes)?;
        let to = readback.lease().clone();
        self.stage(&to, readback.seal_offset(), &readback.seal())?;
        self.encoder
            .copy_buffer_to_buffer(lease.buffer(), 0, to.buffer(), 0, bytes);
        self.keep(lease);
        self.readbacks.0.push(readback.clone());
        let elements = (bytes as usize).checked_div(size_of::<T>());
        Ok(Download::new(readback, Vec::new(), elements.unwrap_or(0)))
    }

    /// Submits the commands. From now on the leases may be lent again, because the commands of the next lease are submitted
    /// later. Staging memory comes back when the device is done with it.
    ///
    /// # Errors
    /// [`Error::Validation`] if wgpu refuses the commands, [`Error::SubmissionOutOfMemory`], [`Error::DeviceLost`]. After an
    /// error nothing was submitted, and the commands are gone.
    pub fn submit(self) -> Result<Submission> {
        let Self {
            pool,
            watch,
            queue,
            label,
            encoder,
            held,
            staging,
            readbacks,
        } = self;
        let destination = Destination {
            watch: &watch,
            queue: &queue,
            pool: &pool,
        };
        let submission = destination.submit(&label, || {
            Unmapped::new(staging).map_again_on_submit(&watch, &encoder);
            for readback in &readbacks.0 {
                readback.map_on_submit(&encoder);
            }
            Ok(encoder.finish())
        })?;
        for readback in &readbacks.0 {
            readback.submitted();
        }
        // Only now, because the submission uses them.
        drop(held);
        Ok(submission)
    }

    /// Whether `lease` is of this pool and has the usages that a call `needs`.
    fn expect_own(
        &self,
        lease: &Lease,
        (needs, reason): (wgpu::BufferUsages, &'static str),
    ) -> Result<()> {
        if lease.pool_id() != self.pool.id() {
            return Err(Error::ContextMismatch {
                what: lease.label().clone(),
                given: lease.pool_id(),
                expected: self.pool.id(),
            });
        }
        if !lease.usage().contains(needs) {
            return Err(Error::Pool(PoolError::InvalidUsage {
                label: lease.label().clone(),
                usage: lease.usage(),
                reason,
            }));
        }
        Ok(())
    }

    fn stage(&mut self, to: &Lease, to_offset: u64, bytes: &[u8]) -> Result<()> {
        let watch = &self.watch;
        let write = |chunk: &Lease, range, piece: &[u8]| write_mapped(watch, chunk, range, piece);
        for piece in stage(&self.pool, &mut self.staging, bytes, write)? {
            let chunk = self.staging[piece.chunk].lease.buffer();
            let offset = to_offset + piece.offset;
            self.encoder.copy_buffer_to_buffer(
                chunk,
                piece.chunk_offset,
                to.buffer(),
                offset,
                piece.bytes,
            );
        }
        Ok(())
    }
}

impl fmt::Debug for PoolEncoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolEncoder")
            .field("label", &self.label)
            .field("held", &self.held)
            .finish_non_exhaustive()
    }
}

/// Downloads, which fail if they are dropped before they are submitted.
struct Readbacks(Vec<Arc<Readback>>);

impl Drop for Readbacks {
    fn drop(&mut self) {
        for readback in &self.0 {
            readback.abandon("its encoder was dropped unsubmitted: record it again");
        }
    }
}
