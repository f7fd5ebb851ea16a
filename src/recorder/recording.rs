//! A recording as data: commands, and the leases that they use.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::machine::Machine;
use crate::contents::{Fate, Tracker};
use crate::device::ByteRange;
use crate::error::Result;
use crate::kernels::Kernel;
use crate::label::Label;
use crate::pool::{Lease, PARAMS_USAGE};
use crate::pool_encoder::{StagingChunk, stage};
use crate::readback::Readback;

/// Index of a lease in the recording's list.
pub(super) type LeaseIndex = usize;

/// One command for the device.
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

/// Commands in order, with everything they use. If it is dropped before it runs, its downloads fail.
pub(crate) struct Recording {
    pub(super) label: Label,
    pub(super) commands: Vec<Command>,
    /// Commands that one slice holds all of, in order.
    pub(super) uncut: Vec<Range<usize>>,
    pub(super) held: Vec<Lease>,
    /// Index of each lease in `held`, by the buffer's serial number. A serial identifies the lease while the recording holds
    /// it.
    held_index: HashMap<u64, LeaseIndex>,
    pub(super) staging: Vec<StagingChunk>,
    /// Downloads, each with the number of commands after which it is complete.
    pub(super) readbacks: Vec<(Arc<Readback>, usize)>,
    /// Parameters of all dispatches, each at an offset that is aligned for a dynamic uniform binding.
    pub(super) params: Vec<u8>,
    pub(super) tracker: Tracker,
    /// If set, why its downloads never arrive.
    never: Option<&'static str>,
}

impl Recording {
    pub(super) fn new(machine: &Machine, label: Label) -> Self {
        Self {
            label: label.clone(),
            commands: Vec::new(),
            uncut: Vec::new(),
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

    /// Keeps `lease` until the recording has run, and returns its index.
    pub(super) fn hold(&mut self, lease: &Lease) -> LeaseIndex {
        *self
            .held_index
            .entry(lease.buffer_serial())
            .or_insert_with(|| {
                self.held.push(lease.clone());
                self.held.len() - 1
            })
    }

    /// Copies `bytes` to staging memory now and records their copy to `to`; after an error it has recorded nothing.
    pub(super) fn stage(
        &mut self,
        machine: &Machine,
        to: LeaseIndex,
        to_offset: u64,
        bytes: &[u8],
    ) -> Result<()> {
        let write =
            |chunk: &Lease, range, piece: &[u8]| machine.runner.write(machine, chunk, range, piece);
        let pieces = stage(machine.pool(), &mut self.staging, bytes, write)?;
        let uploads = pieces.into_iter().map(|piece| Command::Upload {
            chunk: piece.chunk,
            chunk_offset: piece.chunk_offset,
            to,
            offset: to_offset + piece.offset,
            bytes: piece.bytes,
        });
        self.commands.extend(uploads);
        Ok(())
    }

    /// Puts the upload of the parameters before all other commands, and returns the index of the lease that holds them.
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

/// The parameters of one dispatch.
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
