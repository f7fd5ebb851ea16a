//! A recording as data: commands, and the leases that they use.

use std::collections::HashMap;
use std::sync::Arc;

use super::machine::Machine;
use crate::contents::{Fate, Tracker};
use crate::device::ByteRange;
use crate::error::Result;
use crate::kernels::Kernel;
use crate::plan::staging_bytes;
use crate::pool::{Lease, PARAMS_USAGE, STAGING_USAGE};
use crate::readback::Readback;

/// Index of a lease in the recording's list.
pub(super) type LeaseIndex = usize;

/// What the device is to do.
#[derive(Clone)]
pub(super) enum Command {
    Upload {
        chunk: usize,
        chunk_offset: u64,
        to: LeaseIndex,
        offset: u64,
        bytes: u64,
    },
    Copy {
        from: LeaseIndex,
        from_offset: u64,
        to: LeaseIndex,
        to_offset: u64,
        bytes: u64,
    },
    Clear {
        to: LeaseIndex,
        range: ByteRange,
    },
    Dispatch {
        kernel: Kernel,
        bindings: Vec<(LeaseIndex, ByteRange)>,
        params_offset: u32,
        grid: [u32; 2],
    },
}

/// Host memory that the device copies from.
pub(super) struct StagingChunk {
    pub lease: Lease,
    pub used_bytes: u64,
}

/// Commands in order, with all that they use. Dropped before it is run, it tells those who wait for its downloads.
pub(crate) struct Recording {
    pub(super) label: &'static str,
    pub(super) commands: Vec<Command>,
    pub(super) held: Vec<Lease>,
    /// By number of the buffer, which nobody else is lent while the recording holds it.
    held_index: HashMap<u64, LeaseIndex>,
    pub(super) staging: Vec<StagingChunk>,
    /// With the number of commands before each is complete.
    pub(super) readbacks: Vec<(Arc<Readback>, usize)>,
    /// Parameters of all dispatches, each at an offset that a dynamic uniform binding may have.
    pub(super) params: Vec<u8>,
    pub(super) tracker: Tracker,
    /// Why its downloads never arrive, whatever becomes of it.
    never: Option<&'static str>,
}

impl Recording {
    pub(super) fn new(machine: &Machine, label: &'static str) -> Self {
        Self {
            label,
            commands: Vec::new(),
            held: Vec::new(),
            held_index: HashMap::new(),
            staging: Vec::new(),
            readbacks: Vec::new(),
            params: Vec::new(),
            tracker: Tracker::new(label),
            never: machine.runner.never(),
        }
    }

    /// The kernels, each once, in order of first use, with the work of all dispatches of each ([`Kernel::workgroup_work`]).
    pub(super) fn work(&self) -> Vec<(Kernel, f64)> {
        let mut work: Vec<(Kernel, f64)> = Vec::new();
        for command in &self.commands {
            let Command::Dispatch {
                kernel,
                params_offset,
                grid: [x, y],
                ..
            } = command
            else {
                continue;
            };
            let params = params_of(&self.params, *params_offset, *kernel);
            let more = kernel.workgroup_work(params) * f64::from(*x) * f64::from(*y);
            match work.iter_mut().find(|(other, _)| other == kernel) {
                Some((_, sum)) => *sum += more,
                None => work.push((*kernel, more)),
            }
        }
        work
    }

    /// Keeps `lease` until the recording is run.
    pub(super) fn hold(&mut self, lease: &Lease) -> LeaseIndex {
        *self
            .held_index
            .entry(lease.buffer_serial())
            .or_insert_with(|| {
                self.held.push(lease.clone());
                self.held.len() - 1
            })
    }

    /// Copies `bytes` to staging memory now and records their copy to `to`.
    pub(super) fn stage(
        &mut self,
        machine: &Machine,
        to: LeaseIndex,
        to_offset: u64,
        bytes: &[u8],
    ) -> Result<()> {
        let mut offset = 0;
        while offset < bytes.len() {
            let left = bytes.len() - offset;
            let room = self
                .staging
                .last()
                .map_or(0, |chunk| chunk.lease.requested_bytes() - chunk.used_bytes);
            if room == 0 {
                let lease =
                    machine
                        .pool()
                        .acquire("staging", staging_bytes(left as u64), STAGING_USAGE)?;
                self.staging.push(StagingChunk {
                    lease,
                    used_bytes: 0,
                });
                continue;
            }
            let chunk_index = self.staging.len() - 1;
            let chunk = &mut self.staging[chunk_index];
            let piece = &bytes[offset..offset + left.min(room as usize)];
            // Copies move whole words. They fit, because chunks and their used parts are multiples of 8.
            let padded = (piece.len() as u64).next_multiple_of(4);
            let range = chunk.used_bytes..chunk.used_bytes + padded;
            machine.runner.write(machine, &chunk.lease, range, piece)?;
            self.commands.push(Command::Upload {
                chunk: chunk_index,
                chunk_offset: chunk.used_bytes,
                to,
                offset: to_offset + offset as u64,
                bytes: padded,
            });
            // The next piece begins where a mapped range may.
            chunk.used_bytes += padded.next_multiple_of(wgpu::MAP_ALIGNMENT);
            offset += piece.len();
        }
        Ok(())
    }

    /// Puts the copy of the parameters before everything else and tells which lease they go to.
    pub(super) fn stage_params(&mut self, machine: &Machine) -> Result<Option<LeaseIndex>> {
        if self.params.is_empty() {
            return Ok(None);
        }
        let params = std::mem::take(&mut self.params);
        let pool = machine.pool();
        let lease = pool.acquire("params", params.len() as u64, PARAMS_USAGE)?;
        let held = self.hold(&lease);
        let before = self.commands.len();
        self.stage(machine, held, 0, &params)?;
        let staged = self.commands.len() - before;
        self.commands.rotate_right(staged);
        Ok(Some(held))
    }
}

/// The parameters of one dispatch among those of all.
pub(super) fn params_of(params: &[u8], offset: u32, kernel: Kernel) -> &[u8] {
    let begin = offset as usize;
    let end = begin + kernel.params_bytes() as usize;
    params.get(begin..end).unwrap_or_default()
}

impl Drop for Recording {
    fn drop(&mut self) {
        let reason = match (self.never, self.tracker.fate()) {
            (Some(never), _) => never,
            (None, Fate::Refused) => {
                "its recording was refused: see the error of its submission, then record it again"
            }
            (None, _) => "its recording was dropped unsubmitted: record it again",
        };
        for (readback, _) in &self.readbacks {
            readback.abandon(reason);
        }
    }
}
