//! The buffers of a dry run, a context that only counts ([`Context::dry_run`](crate::Context::dry_run)).
//!
//! Whoever wants to know what a training step will need could write a second program that adds up the sizes of all tensors,
//! and keep both alike for ever. Here the program itself is run, on a context whose recordings take leases from a pool and
//! count dispatches but do nothing else: no shader is compiled, no byte copied, and the pool's buffers are of four bytes,
//! whatever their leases say. What its pool measures is what the pool of a device will measure.

use std::time::Duration;

use super::Context;
use crate::pool::{BufferSource, CreateError};
use crate::recorder::Recorder;

/// Recordings of a dry run, counted.
#[derive(Debug)]
pub(crate) struct Tally<'a> {
    /// Whose cost model tells the time.
    measured: Option<&'a Context>,
    pub num_recordings: u64,
    pub num_dispatches: u64,
    /// Time of all dispatches, where all kernels were measured.
    pub expected_time: Option<Duration>,
}

impl<'a> Tally<'a> {
    /// Of no recording yet.
    pub fn new(measured: Option<&'a Context>) -> Self {
        Self {
            measured,
            num_recordings: 0,
            num_dispatches: 0,
            expected_time: measured.map(|_| Duration::ZERO),
        }
    }

    /// Counts a recording.
    pub fn add(&mut self, recorder: &Recorder) {
        self.num_recordings += 1;
        self.num_dispatches += recorder.num_dispatches();
        let more = self
            .measured
            .and_then(|context| context.expected_time(recorder));
        let so_far = self.expected_time.zip(more);
        self.expected_time = so_far.and_then(|(sum, time)| sum.checked_add(time));
    }
}

/// Buffers that stand for larger ones and are never used.
#[derive(Debug)]
pub(super) struct DryRunSource {
    pub device: wgpu::Device,
    pub max_buffer_bytes: u64,
}

impl BufferSource for DryRunSource {
    #[expect(
        clippy::disallowed_methods,
        reason = "a buffer source, like the pool's own"
    )]
    fn create(
        &self,
        label: &str,
        _: u64,
        usage: wgpu::BufferUsages,
    ) -> Result<wgpu::Buffer, CreateError> {
        Ok(self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(label),
            size: 4,
            usage,
            mapped_at_creation: false,
        }))
    }

    fn poll(&self, _: bool) {}

    fn max_buffer_bytes(&self) -> u64 {
        self.max_buffer_bytes
    }
}
