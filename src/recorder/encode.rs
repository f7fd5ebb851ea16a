//! Encodes a recording's list of commands into a command encoder.

use std::sync::Arc;

use super::machine::Machine;
use super::recording::{Command, LeaseIndex, Recording};
use crate::contents::{Fate, Tracker};
use crate::error::{Error, Result};
use crate::label::Label;
use crate::pool::Lease;
use crate::pool_encoder::{Destination, StagingChunk, Submission, Unmapped, refused};
use crate::readback::Readback;
use crate::scope;
use crate::watch::Outcome;

/// The buffers that indices in commands refer to.
pub(super) struct Buffers<'a> {
    pub held: &'a dyn Fn(LeaseIndex) -> Option<&'a Lease>,
    pub staging: &'a dyn Fn(usize) -> Option<&'a StagingChunk>,
    pub params: Option<&'a Lease>,
}

impl<'a> Buffers<'a> {
    fn held(&self, held: LeaseIndex) -> Option<&'a wgpu::Buffer> {
        Some((self.held)(held)?.buffer())
    }

    fn staging(&self, chunk: usize) -> Option<&'a wgpu::Buffer> {
        Some((self.staging)(chunk)?.lease.buffer())
    }
}

/// Records one encoder, submits it to the context's queue, and counts the submission.
///
/// # Errors
/// The errors of `record`, and as [`Recorder::submit`](super::Recorder::submit).
pub(super) fn submit(
    machine: &Machine,
    label: &Label,
    record: impl FnOnce(&mut wgpu::CommandEncoder) -> Result<()>,
) -> Result<Submission> {
    let destination = Destination {
        watch: machine.watch(),
        queue: machine.queue(),
        pool: machine.pool(),
    };
    destination.submit(label, || {
        let label = Some(label.as_str());
        let descriptor = wgpu::CommandEncoderDescriptor { label };
        let mut encoder = machine.device().create_command_encoder(&descriptor);
        record(&mut encoder)?;
        Ok(encoder.finish())
    })
}

/// Appends `commands` to `encoder`.
///
/// # Errors
/// The errors of getting pipelines. They are not expected, because pipelines were compiled when the commands were recorded.
pub(super) fn record(
    machine: &Machine,
    label: &Label,
    encoder: &mut wgpu::CommandEncoder,
    commands: &[Command],
    buffers: &Buffers<'_>,
) -> Result<()> {
    let mut commands = commands.iter().peekable();
    while let Some(command) = commands.next() {
        if let Command::Dispatch { .. } = command {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
                label: Some(label.as_str()),
                timestamp_writes: None,
            });
            record_dispatch(machine, &mut pass, command, buffers)?;
            // Consecutive dispatches share a pass.
            while let Some(next @ Command::Dispatch { .. }) = commands.peek() {
                record_dispatch(machine, &mut pass, next, buffers)?;
                commands.next();
            }
        } else {
            record_copy(encoder, command, buffers).ok_or_else(|| given_back(label))?;
        }
    }
    Ok(())
}

/// Encodes an upload, copy or clear. `None` if a buffer is missing, which cannot happen: buffers are given back after their
/// last command.
fn record_copy(
    encoder: &mut wgpu::CommandEncoder,
    command: &Command,
    buffers: &Buffers<'_>,
) -> Option<()> {
    match command {
        &Command::Upload {
            chunk,
            chunk_offset,
            to,
            offset,
            bytes,
        } => {
            let (from, to) = (buffers.staging(chunk)?, buffers.held(to)?);
            encoder.copy_buffer_to_buffer(from, chunk_offset, to, offset, bytes);
        }
        &Command::Copy {
            from,
            from_offset,
            to,
            to_offset,
            bytes,
        } => {
            let (from, to) = (buffers.held(from)?, buffers.held(to)?);
            encoder.copy_buffer_to_buffer(from, from_offset, to, to_offset, bytes);
        }
        Command::Clear { to, range } => {
            encoder.clear_buffer(buffers.held(*to)?, range.offset, Some(range.size));
        }
        Command::Dispatch { .. } => {}
    }
    Some(())
}

/// A bug in this library. Nothing runs, rather than a part.
fn given_back(label: impl Into<Label>) -> Error {
    Error::Validation {
        label: label.into(),
        reason: "a buffer was given back before its last command".to_owned(),
    }
}

fn record_dispatch(
    machine: &Machine,
    pass: &mut wgpu::ComputePass<'_>,
    command: &Command,
    buffers: &Buffers<'_>,
) -> Result<()> {
    let Command::Dispatch {
        kernel,
        bindings,
        params_offset,
        grid,
    } = command
    else {
        return Ok(());
    };
    // Compiled when it was recorded.
    let pipeline = machine.pipeline(*kernel)?;
    let params = buffers.params.ok_or_else(|| given_back(pipeline.label()))?;
    let binding = |buffer, offset, size| {
        wgpu::BindingResource::Buffer(wgpu::BufferBinding {
            buffer,
            offset,
            size: wgpu::BufferSize::new(size),
        })
    };
    let mut entries = vec![wgpu::BindGroupEntry {
        binding: 0,
        resource: binding(params.buffer(), 0, pipeline.params_bytes()),
    }];
    for (number, &(held, range)) in (1..).zip(bindings) {
        let buffer = buffers
            .held(held)
            .ok_or_else(|| given_back(pipeline.label()))?;
        entries.push(wgpu::BindGroupEntry {
            binding: number,
            resource: binding(buffer, range.offset, range.size),
        });
    }
    let group = machine
        .device()
        .create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some(pipeline.label()),
            layout: pipeline.bind_group_layout(),
            entries: &entries,
        });
    pass.set_pipeline(pipeline.compute());
    pass.set_bind_group(0, &group, &[*params_offset]);
    pass.dispatch_workgroups(grid[0], grid[1], 1);
    Ok(())
}

/// A recording in an application's encoder. When the device is done with the encoder, or the encoder is dropped, its leases
/// go back and its tensors learn their fate.
pub(super) struct Encoded {
    tracker: Tracker,
    receipt: Option<Arc<Readback>>,
    fate: Fate,
    _held: Vec<Lease>,
}

impl Encoded {
    /// Takes over the leases and the tracker of `recording`, whose commands are in the encoder now.
    pub fn new(recording: &mut Recording) -> Self {
        let tracker = std::mem::replace(
            &mut recording.tracker,
            Tracker::new(recording.label.clone()),
        );
        tracker.encoded();
        Self {
            tracker,
            receipt: recording.readbacks.first().map(|(first, _)| first.clone()),
            fate: Fate::EncoderDropped,
            _held: std::mem::take(&mut recording.held),
        }
    }

    /// Notes what became of the encoder. If it ran, its downloads were mapped before this call.
    pub fn ended(mut self, outcome: Outcome) {
        self.fate = match outcome {
            // Nothing on a lost device is read any more.
            Outcome::Lost => Fate::Submitted,
            Outcome::Dropped => Fate::EncoderDropped,
            Outcome::Done => match self.receipt.take() {
                Some(receipt) if receipt.is_ready() => Fate::Submitted,
                _ => Fate::EncoderRefused,
            },
        };
    }
}

impl Drop for Encoded {
    fn drop(&mut self) {
        match self.fate {
            Fate::Submitted => self.tracker.submitted(),
            fate => self.tracker.failed(fate),
        }
    }
}

/// As [`record_into`], for an application's encoder.
///
/// # Errors
/// Errors that the device reports about buffers and bindings, and panics of wgpu.
pub(super) fn record_into_foreign(
    machine: &Machine,
    recording: &mut Recording,
    encoder: &mut wgpu::CommandEncoder,
) -> Result<()> {
    let label = recording.label.clone();
    scope::catch(machine.watch(), || record_into(machine, recording, encoder))
        .map_err(|caught| refused(machine.pool(), &label, caught))?
}

/// Appends a whole recording to `encoder`.
pub(super) fn record_into(
    machine: &Machine,
    recording: &mut Recording,
    encoder: &mut wgpu::CommandEncoder,
) -> Result<()> {
    let params = recording.stage_params(machine)?;
    let staging = Unmapped::new(std::mem::take(&mut recording.staging));
    let buffers = Buffers {
        held: &|held| recording.held.get(held),
        staging: &|chunk| staging.0.get(chunk),
        params: params.map(|params| &recording.held[params]),
    };
    record(
        machine,
        &recording.label,
        encoder,
        &recording.commands,
        &buffers,
    )?;
    staging.map_again_on_submit(machine.watch(), encoder);
    for (readback, _) in &recording.readbacks {
        readback.map_on_submit(encoder);
    }
    Ok(())
}
