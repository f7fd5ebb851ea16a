//! The buffers of a dry run, a context without a device ([`Context::dry_run`](crate::Context::dry_run)).
//!
//! A dry run answers what a model or a training step will need, by running the same code without a device. Recordings take leases
//! from a pool and count dispatches, and do nothing else: no shader is compiled and no byte copied. The pool's buffers have four
//! bytes, whatever the size of their leases. So the figures of this pool are those that the pool of a real device would have, and
//! no second program has to compute them.

use std::time::Duration;

use super::Context;
use crate::pool::{BufferSource, CreateError};
use crate::recorder::Recorder;

/// Recordings of a dry run, counted.
#[derive(Debug)]
pub(crate) struct Tally<'a> {
    /// Whose cost model tells the time.
    measured: Option<&'a Context>,
    pub num_recordings: usize,
    pub num_dispatches: usize,
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

/// Makes buffers of four bytes in the place of larger ones. They are never used.
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
