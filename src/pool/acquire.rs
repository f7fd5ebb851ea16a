//! How a request is served: by the thread's own shard, by another shard, or by a new buffer; and what happens when memory
//! runs out.

use std::sync::Arc;

use super::core::Core;
use super::event::EvictionCause;
use super::lease::{Lease, PooledBuffer};
use super::locked_pool::{Evicted, LockedPool};
use super::shard::{Gauge, Request, Taken};
use super::source::CreateError;
use super::sync::lock;
use crate::pool_figures::PoolReport;
use crate::wgpu::BufferUsages;

/// Why a request failed.
#[derive(Debug)]
pub(super) enum Failure {
    Budget {
        budget_bytes: u64,
        report: Box<PoolReport>,
    },
    OutOfMemory(Box<PoolReport>),
    Lost(String),
    Refused(String),
}

impl<B> Core<B> {
    pub fn acquire(
        self: &Arc<Self>,
        shard_index: usize,
        request: &Request,
    ) -> Result<Lease<B>, Failure> {
        // A shard that was never used has nothing to lend.
        let mut shard = lock(&self.shards[shard_index].0);
        if let Taken::Hit(held, fit) = shard.take(request, false) {
            if shard.traced {
                self.log_acquire(&held, request, fit.into());
            }
            drop(shard);
            return Ok(Lease::new(held, request));
        }
        drop(shard);
        self.acquire_slowly(shard_index, request)
    }

    #[cold]
    fn acquire_slowly(
        self: &Arc<Self>,
        shard_index: usize,
        request: &Request,
    ) -> Result<Lease<B>, Failure> {
        let (mut ran_out, mut waited) = (false, false);
        loop {
            let mut all = self.lock_all(Some(shard_index));
            if let Some(lease) = all.take(shard_index, request) {
                all.ledger.recoveries += u64::from(ran_out || waited);
                self.unlock_and_follow_up(all);
                return Ok(lease);
            }
            if let Some(reason) = &all.ledger.lost {
                return Err(Failure::Lost(reason.clone()));
            }
            let usage = all.usage(request.buffer_bytes);
            drop(all);
            let limits = self.policy.limits(&usage);

            // Declared before the locks, so dropped after them.
            let mut evicted = Evicted::new();
            let mut all = self.lock_all(Some(shard_index));
            if let Some(lease) = all.take(shard_index, request) {
                all.ledger.recoveries += u64::from(ran_out || waited);
                self.unlock_and_follow_up(all);
                return Ok(lease);
            }
            all.ledger.limits = limits;
            all.apply_limits(request.buffer_bytes, usage.pressure, &mut evicted);
            if ran_out {
                // Buffers that came back during the wait did not fit, and their memory is needed.
                all.evict(EvictionCause::OutOfMemory, &mut evicted, |_| true);
            }
            if let Some(budget_bytes) = all.ledger.budget.bytes {
                let over = |all: &LockedPool<'_, B>| {
                    all.committed_bytes().saturating_add(request.buffer_bytes) > budget_bytes
                };
                all.evict(EvictionCause::Budget, &mut evicted, over);
                if over(&all) {
                    let may_wait = all.sum(Gauge::Pending) > 0 || all.ledger.draining_bytes > 0;
                    if waited || !may_wait {
                        let report = Box::new(all.report());
                        all.level();
                        return Err(Failure::Budget {
                            budget_bytes,
                            report,
                        });
                    }
                    self.unlock_and_follow_up(all);
                    drop(evicted);
                    // Pending and draining buffers come back when the device is done with them.
                    self.source.poll(true);
                    waited = true;
                    continue;
                }
            }
            let creating = Creating::begin(self, &mut all, request.buffer_bytes);
            all.level();
            drop(all);
            drop(evicted);
            if ran_out {
                self.source.poll(true);
            }
            let usage = BufferUsages::from_bits_retain(request.usage);
            match self
                .source
                .create(request.label, request.buffer_bytes, usage)
            {
                Ok(buffer) => {
                    #[cfg(feature = "tracing")]
                    tracing::debug!(
                        label = request.label.as_str(),
                        bytes = request.buffer_bytes,
                        "a buffer is created"
                    );
                    let keeps = self.policy.keeps(request.buffer_bytes);
                    let held = PooledBuffer::new(self.clone(), buffer, request);
                    let mut all = self.lock_all(Some(shard_index));
                    creating.end(&mut all);
                    all.insert(shard_index, &held, request, keeps);
                    all.ledger.recoveries += u64::from(ran_out || waited);
                    // Before the policy is asked again, which might panic.
                    let lease = Lease::new(held, request);
                    self.unlock_and_follow_up(all);
                    return Ok(lease);
                }
                Err(CreateError::Refused(reason)) => return Err(Failure::Refused(reason)),
                Err(CreateError::Lost(reason)) => {
                    drop(creating);
                    self.device_lost(reason.clone());
                    return Err(Failure::Lost(reason));
                }
                Err(CreateError::OutOfMemory) => {
                    #[cfg(feature = "tracing")]
                    tracing::warn!(
                        label = request.label.as_str(),
                        bytes = request.buffer_bytes,
                        "the device has no memory for a buffer"
                    );
                    drop(creating);
                    let mut evicted = Evicted::new();
                    let mut all = self.lock_all(Some(shard_index));
                    if ran_out {
                        return Err(Failure::OutOfMemory(Box::new(all.report())));
                    }
                    ran_out = true;
                    all.evict(EvictionCause::OutOfMemory, &mut evicted, |_| true);
                    self.unlock_and_follow_up(all);
                    drop(evicted);
                    // Memory of destroyed buffers is free only once no submission in flight uses them.
                    self.source.poll(true);
                }
            }
        }
    }
}

/// Bytes set aside while a buffer is created; given back even if the source panics.
struct Creating<'a, B> {
    core: &'a Core<B>,
    bytes: u64,
}

impl<'a, B> Creating<'a, B> {
    fn begin(core: &'a Core<B>, all: &mut LockedPool<'_, B>, bytes: u64) -> Self {
        all.ledger.creating_bytes += bytes;
        Self { core, bytes }
    }

    /// The buffer exists now, so the bytes set aside for it count as held.
    fn end(mut self, all: &mut LockedPool<'_, B>) {
        all.ledger.creating_bytes -= std::mem::take(&mut self.bytes);
    }
}

impl<B> Drop for Creating<'_, B> {
    fn drop(&mut self) {
        if self.bytes > 0 {
            lock(&self.core.ledger.0).creating_bytes -= self.bytes;
        }
    }
}
