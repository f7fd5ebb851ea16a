//! Turns the list of commands into those of an encoder.

use super::{Command, Held, Recorder};
use crate::error::Result;
use crate::pool::{Lease, PARAMS_USAGE};

impl Recorder {
    /// Appends everything to `encoder`. Nothing of this recording was there before, or is after a failure.
    pub(super) fn record_into(&mut self, encoder: &mut wgpu::CommandEncoder) -> Result<()> {
        let params = self.stage_params()?;
        for chunk in &self.staging {
            chunk.lease.buffer().unmap();
        }
        let mut commands = self.commands.iter().peekable();
        while let Some(command) = commands.next() {
            match command {
                &Command::Upload {
                    chunk,
                    chunk_offset,
                    to,
                    offset,
                    bytes,
                } => encoder.copy_buffer_to_buffer(
                    self.staging[chunk].lease.buffer(),
                    chunk_offset,
                    self.held[to].buffer(),
                    offset,
                    bytes,
                ),
                &Command::Copy {
                    from,
                    from_offset,
                    to,
                    to_offset,
                    bytes,
                } => encoder.copy_buffer_to_buffer(
                    self.held[from].buffer(),
                    from_offset,
                    self.held[to].buffer(),
                    to_offset,
                    bytes,
                ),
                Command::Clear { to, range } => {
                    encoder.clear_buffer(self.held[*to].buffer(), range.offset, Some(range.size))
                }
                Command::Dispatch { .. } => {
                    let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
                        label: Some(self.label),
                        timestamp_writes: None,
                    });
                    self.record_dispatch(&mut pass, command, params);
                    // Dispatches that follow each other share the pass.
                    while let Some(next @ Command::Dispatch { .. }) = commands.peek() {
                        self.record_dispatch(&mut pass, next, params);
                        commands.next();
                    }
                }
            }
        }
        for chunk in self.staging.drain(..) {
            map_again_on_submit(chunk.lease, encoder);
        }
        for readback in &self.readbacks {
            readback.map_on_submit(encoder);
        }
        Ok(())
    }

    /// Puts the copy of the parameters before everything else and tells which lease they go to.
    pub(super) fn stage_params(&mut self) -> Result<Option<Held>> {
        if self.params.is_empty() {
            return Ok(None);
        }
        let params = std::mem::take(&mut self.params);
        let lease = self
            .context
            .pool()
            .acquire("params", params.len() as u64, PARAMS_USAGE)?;
        let held = self.hold(&lease);
        let before = self.commands.len();
        self.stage_at(held, 0, &params)?;
        let staged = self.commands.len() - before;
        self.commands.rotate_right(staged);
        Ok(Some(held))
    }

    fn record_dispatch(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        command: &Command,
        params: Option<Held>,
    ) {
        let (
            Command::Dispatch {
                pipeline,
                bindings,
                params_offset,
                grid,
            },
            Some(params),
        ) = (command, params)
        else {
            return;
        };
        let binding = |buffer, offset, size| {
            wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                buffer,
                offset,
                size: wgpu::BufferSize::new(size),
            })
        };
        let mut entries = vec![wgpu::BindGroupEntry {
            binding: 0,
            resource: binding(self.held[params].buffer(), 0, pipeline.params_bytes()),
        }];
        for (number, &(held, range)) in (1..).zip(bindings) {
            entries.push(wgpu::BindGroupEntry {
                binding: number,
                resource: binding(self.held[held].buffer(), range.offset, range.size),
            });
        }
        let group = self
            .context
            .device()
            .create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some(pipeline.label()),
                layout: pipeline.bind_group_layout(),
                entries: &entries,
            });
        pass.set_pipeline(pipeline.compute());
        pass.set_bind_group(0, &group, &[*params_offset]);
        pass.dispatch_workgroups(grid[0], grid[1], 1);
    }
}

/// The staging chunk returns to the pool once the device is done with it and it is mapped again.
fn map_again_on_submit(lease: Lease, encoder: &wgpu::CommandEncoder) {
    let buffer = lease.buffer().clone();
    // Only the recording ever held the chunk, so this cannot fail; a shared one would simply not be reused.
    let Ok(pending) = lease.suspend() else { return };
    encoder.map_buffer_on_submit(&buffer, wgpu::MapMode::Write, .., move |result| {
        if result.is_ok() {
            pending.ready();
        }
    });
}
