//! Runners of recordings: a device, which runs them at once, in slices, or through an application's encoder; and the dry
//! run, which runs nothing, for plans.

use std::fmt;
use std::ops::Range;
#[cfg(feature = "dry-run")]
use std::sync::Arc;

use super::encode;
use super::machine::Machine;
use super::recording::Recording;
use super::slices::SlicedSubmission;
use crate::error::Result;
use crate::kernels::Kernel;
use crate::pool::Lease;
use crate::pool_encoder::{Submission, write_mapped};

/// Runs recordings.
pub(crate) trait Runner: fmt::Debug + Send + Sync {
    /// Compiles a kernel before it is recorded, so that a refused shader leaves the recording as it was.
    fn prepare(&self, machine: &Machine, kernel: Kernel) -> Result<()>;

    /// Writes to mapped staging memory.
    fn write(
        &self,
        machine: &Machine,
        chunk: &Lease,
        range: Range<u64>,
        bytes: &[u8],
    ) -> Result<()>;

    /// Submits a whole recording. The caller updates the recording's tracker.
    fn submit(&self, machine: &Machine, recording: &mut Recording) -> Result<Submission>;

    /// Appends a recording to an application's encoder, and updates its tracker, because the encoder's fate is known only
    /// later.
    fn encode(
        &self,
        machine: &Machine,
        recording: &mut Recording,
        encoder: &mut wgpu::CommandEncoder,
    ) -> Result<()>;

    /// Submits the next slice.
    fn submit_slice(&self, sliced: &mut SlicedSubmission) -> Result<()>;

    /// Why downloads never arrive, or `None` if they do.
    fn never(&self) -> Option<&'static str>;
}

/// Runs recordings on the machine's device.
#[derive(Debug)]
pub(crate) struct OnDevice;

impl Runner for OnDevice {
    fn prepare(&self, machine: &Machine, kernel: Kernel) -> Result<()> {
        machine.pipeline(kernel).map(drop)
    }

    fn write(
        &self,
        machine: &Machine,
        chunk: &Lease,
        range: Range<u64>,
        bytes: &[u8],
    ) -> Result<()> {
        write_mapped(machine.watch(), chunk, range, bytes)
    }

    fn submit(&self, machine: &Machine, recording: &mut Recording) -> Result<Submission> {
        let label = recording.label.clone();
        let submission = encode::submit(machine, &label, |encoder| {
            encode::record_into(machine, recording, encoder)
        })?;
        for (readback, _) in &recording.readbacks {
            readback.submitted();
        }
        Ok(submission)
    }

    fn encode(
        &self,
        machine: &Machine,
        recording: &mut Recording,
        encoder: &mut wgpu::CommandEncoder,
    ) -> Result<()> {
        encode::record_into_foreign(machine, recording, encoder)?;
        let encoded = encode::Encoded::new(recording);
        let ticket = machine.watch().expect(|outcome| encoded.ended(outcome));
        encoder.on_submitted_work_done(move || ticket.done());
        Ok(())
    }

    fn submit_slice(&self, sliced: &mut SlicedSubmission) -> Result<()> {
        sliced.submit_next()
    }

    fn never(&self) -> Option<&'static str> {
        None
    }
}

/// Why the downloads of a dry run never arrive.
#[cfg(feature = "dry-run")]
const NEVER: &str = "it was recorded as a dry run, which runs nothing: record it on a device";

/// Runs nothing. Recordings take their leases and are counted.
#[cfg(feature = "dry-run")]
#[derive(Debug)]
pub(crate) struct DryRun;

#[cfg(feature = "dry-run")]
impl Runner for DryRun {
    fn prepare(&self, _: &Machine, _: Kernel) -> Result<()> {
        Ok(())
    }

    fn write(&self, _: &Machine, _: &Lease, _: Range<u64>, _: &[u8]) -> Result<()> {
        Ok(())
    }

    fn submit(&self, machine: &Machine, recording: &mut Recording) -> Result<Submission> {
        recording.stage_params(machine)?;
        let index = machine.queue().submit([]);
        let is_done = Arc::new(true.into());
        Ok(Submission::new(machine.watch().clone(), index, is_done))
    }

    fn encode(
        &self,
        machine: &Machine,
        recording: &mut Recording,
        _: &mut wgpu::CommandEncoder,
    ) -> Result<()> {
        recording.stage_params(machine)?;
        recording.tracker.submitted();
        Ok(())
    }

    fn submit_slice(&self, sliced: &mut SlicedSubmission) -> Result<()> {
        sliced.skip_all(NEVER);
        Ok(())
    }

    fn never(&self) -> Option<&'static str> {
        Some(NEVER)
    }
}
