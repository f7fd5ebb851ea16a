//! Buffers of the application's, taken in.
//!
//! An imported buffer has a lease like any other, so that tensors and recordings treat it alike. But it belongs to the
//! application: it never enters the pool's lists, recordings do not reuse it for something else, and its bytes count neither as
//! leased nor as held, nor against the budget. [`PoolStats::imported`](super::PoolStats::imported) counts it instead.

use std::sync::Arc;

use super::core::Core;
use super::lease::{Lease, PooledBuffer};
use super::shard::Request;
use super::sync::lock;
use crate::pool_figures::Counter;

/// Imported buffers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Imports {
    pub buffers: Counter,
    pub bytes: Counter,
}

impl Imports {
    fn begin(&mut self, bytes: u64) {
        for (counter, by) in [(&mut self.buffers, 1), (&mut self.bytes, bytes)] {
            counter.current += by;
            counter.total += by;
            counter.peak = counter.peak.max(counter.current);
        }
    }

    fn end(&mut self, bytes: u64) {
        self.buffers.current -= 1;
        self.bytes.current -= bytes;
    }

    pub fn reset_peaks(&mut self) {
        self.buffers.peak = self.buffers.current;
        self.bytes.peak = self.bytes.current;
    }
}

impl<B> Core<B> {
    /// A lease of a buffer that the pool never lends.
    pub fn import(self: &Arc<Self>, buffer: B, request: &Request) -> Lease<B> {
        lock(&self.ledger.0).imports.begin(request.buffer_bytes);
        Lease::new(
            PooledBuffer::imported(self.clone(), buffer, request),
            request,
        )
    }

    /// The last handle of an imported buffer is gone.
    pub fn end_import(&self, held: &PooledBuffer<B>) {
        lock(&self.ledger.0).imports.end(held.bytes());
    }
}
