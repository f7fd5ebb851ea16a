//! Staging: bytes on their way from the host to the device.

use std::ops::Range;
use std::sync::Arc;

use crate::error::Result;
use crate::plan::staging_bytes;
use crate::pool::{Lease, Pool, STAGING_USAGE};
use crate::watch::{DeviceWatch, Outcome};

/// A staging buffer: host memory that the device copies from.
pub(crate) struct StagingChunk {
    pub lease: Lease,
    pub used_bytes: u64,
}

/// Where a piece of staged bytes lies.
pub(crate) struct StagedPiece {
    /// Index of the chunk.
    pub chunk: usize,
    /// First byte in the chunk.
    pub chunk_offset: u64,
    /// First byte in what was staged.
    pub offset: u64,
    /// Number of bytes, in whole words, which copies move.
    pub bytes: u64,
}

/// Copies `bytes` into `chunks`, to which it adds what it needs, and returns where they lie. `write` fills a range of a mapped
/// chunk.
///
/// # Errors
/// Those of [`Pool::acquire`] and of `write`.
pub(crate) fn stage(
    pool: &Pool,
    chunks: &mut Vec<StagingChunk>,
    bytes: &[u8],
    write: impl Fn(&Lease, Range<u64>, &[u8]) -> Result<()>,
) -> Result<Vec<StagedPiece>> {
    let mut pieces = Vec::new();
    let mut offset = 0;
    while offset < bytes.len() {
        let left = bytes.len() - offset;
        let room = chunks
            .last()
            .map_or(0, |chunk| chunk.lease.requested_bytes() - chunk.used_bytes);
        if room == 0 {
            let lease = pool.acquire("staging", staging_bytes(left as u64), STAGING_USAGE)?;
            chunks.push(StagingChunk {
                lease,
                used_bytes: 0,
            });
            continue;
        }
        let index = chunks.len() - 1;
        let chunk = &mut chunks[index];
        let piece = &bytes[offset..offset + left.min(room as usize)];
        // Copies move whole words. They fit, because the sizes of chunks and of their used parts are multiples of 8.
        let padded = (piece.len() as u64).next_multiple_of(4);
        let range = chunk.used_bytes..chunk.used_bytes + padded;
        write(&chunk.lease, range, piece)?;
        pieces.push(StagedPiece {
            chunk: index,
            chunk_offset: chunk.used_bytes,
            offset: offset as u64,
            bytes: padded,
        });
        // The next piece begins at a multiple of 8, as mapped ranges must.
        chunk.used_bytes += padded.next_multiple_of(wgpu::MAP_ALIGNMENT);
        offset += piece.len();
    }
    Ok(pieces)
}

/// Writes `bytes` to the beginning of a range of a mapped chunk.
///
/// # Errors
/// [`Error::DeviceLost`](crate::Error::DeviceLost).
pub(crate) fn write_mapped(
    watch: &DeviceWatch,
    chunk: &Lease,
    range: Range<u64>,
    bytes: &[u8],
) -> Result<()> {
    let mut view = watch
        .guard(|| chunk.buffer().get_mapped_range_mut(range))?
        .map_err(|error| {
            // Staging memory of a device that is not lost is mapped.
            watch.lose(&error.to_string());
            watch.tell();
            watch.lost_error("staging memory is not mapped")
        })?;
    view.slice(..bytes.len()).copy_from_slice(bytes);
    Ok(())
}

/// Staging chunks, unmapped so that the device may read them. The pool takes back mapped chunks only. If recording or
/// submitting fails, they are not mapped again and are destroyed.
pub(crate) struct Unmapped(pub Vec<StagingChunk>);

impl Unmapped {
    pub fn new(chunks: Vec<StagingChunk>) -> Self {
        let unmapped = Self(chunks);
        for chunk in &unmapped.0 {
            chunk.lease.buffer().unmap();
        }
        unmapped
    }

    /// Returns all to the pool once the device is done with `encoder`.
    pub fn map_again_on_submit(mut self, watch: &Arc<DeviceWatch>, encoder: &wgpu::CommandEncoder) {
        for chunk in self.0.drain(..) {
            map_again_on_submit(watch, chunk.lease, encoder, |_| ());
        }
    }
}

impl Drop for Unmapped {
    fn drop(&mut self) {
        for chunk in self.0.drain(..) {
            drop(chunk.lease.suspend());
        }
    }
}

/// Returns the staging chunk to the pool once the device is done with it and it is mapped again. `then` is told whether that
/// succeeded.
pub(crate) fn map_again_on_submit(
    watch: &Arc<DeviceWatch>,
    lease: Lease,
    encoder: &wgpu::CommandEncoder,
    then: impl FnOnce(Outcome) + Send + 'static,
) {
    let buffer = lease.buffer().clone();
    // This cannot fail, because only the recording ever held the chunk. A shared chunk would simply not be reused.
    let Ok(pending) = lease.suspend() else { return };
    let ticket = watch.expect(move |outcome| {
        if outcome == Outcome::Done {
            pending.ready();
        }
        then(outcome);
    });
    encoder.map_buffer_on_submit(&buffer, wgpu::MapMode::Write, .., move |result| {
        ticket.mapped(result);
    });
}
