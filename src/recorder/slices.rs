//! Slices: a recording that is submitted in short parts.
//!
//! An application that draws on the same queue waits for everything that was submitted before its frame, and a model on a
//! software adapter computes for seconds. So a [`SlicedSubmission`] submits a recording in slices of about a given time, one
//! after the other. The application's own submissions go in between.
//!
//! **What is cut.** Any command: copies and clears at bytes, dispatches between workgroups. Kernels number their workgroups
//! from `params.first_workgroup` on. In WebGPU, workgroups of a dispatch can neither wait for each other nor see each
//! other's results, so a dispatch in parts computes the same bits. A slice is one submission with its own parameter buffer,
//! leased and returned like that of any recording.
//!
//! **How much goes into a slice.** As much as is expected to take the target time. The expectation is learned: seconds per
//! unit of work of each kernel, from submission (or the end of the application's work before it) until the device is done.
//! An unknown kernel begins with a short slice. From one slice to the next the size at most doubles, and it shrinks at once
//! if a slice took too long. The [`Context`](crate::Context) keeps the cost model, so that the next recording begins with
//! it. Timestamp queries are not used: they are an optional feature, and on software adapters, which need slices most, the
//! time from submission to completion says the same.
//!
//! **Who keeps what alive.** As with any recording, a lease goes back once the last command that uses it is submitted; here
//! that happens slice by slice. Dropping the `SlicedSubmission` cancels the rest. Nothing more is submitted, its downloads
//! fail with [`Error::DownloadAbandoned`], and its leases go back; staging chunks in use are mapped again first. A tensor
//! that was only partly written is torn: recordings that read it are refused with [`Error::NotWritten`] until it is written
//! anew.
//!
//! **What is not cut, on purpose.** A step of the [`Optimizer`](crate::training::Optimizer): all its dispatches are in one
//! slice, however long that takes, so that cancelling leaves all weights as they were, or none.
//!
//! **What cannot be cut.** The compilation of a shader at its first dispatch; warm up before. And the clearing of a new
//! buffer at its first use, which wgpu does by itself; after one run, the pool holds used buffers.
//!
//! **Rejected.** Cutting only between dispatches: one matrix product takes 300 ms on a software adapter. One parameter
//! buffer for all slices, written at the start: how dispatches are cut is not known yet. Two slices in flight: a frame would
//! wait for both.

use std::future::poll_fn;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;

use web_time::Instant;

use super::cost_model::{Activity, CostModel};
use super::encode::{self, Buffers};
use super::machine::Machine;
use super::recording::{Command, Recording, params_of};
use crate::contents::Tracker;
use crate::device::ByteRange;
use crate::error::{Error, Result};
use crate::label::Label;
use crate::pool::Lease;
use crate::pool_encoder::{StagingChunk, Unmapped, map_again_on_submit};
use crate::readback::Readback;
use crate::scope;
use crate::watch::{Outcome, Polling};

/// Copies and clears are cut at multiples of this many bytes.
const BLOCK_BYTES: u64 = 64 << 10;

/// Why a download in a cancelled rest never arrives.
const CANCELLED: &str = "its sliced submission was cancelled or failed before it: record it again";

/// How often the device is polled while a slice is under way. It is the resolution of a slice's time.
const POLL_PERIOD: Duration = Duration::from_micros(250);

/// How a recording is sliced.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct SliceOptions {
    /// Device time that a slice should take. Zero makes slices of one workgroup each. Below 2 ms, submitting takes a large
    /// part of the time.
    pub target: Duration,
}

impl Default for SliceOptions {
    /// 8 ms: half a frame at 60 Hz.
    fn default() -> Self {
        Self {
            target: Duration::from_millis(8),
        }
    }
}

impl SliceOptions {
    /// Sets the target time.
    pub fn with_target(self, target: Duration) -> Self {
        Self { target }
    }
}

/// How much of some work is done. A sliced submission counts nanoseconds of device time, as expected when it began. A model's
/// run counts multiplications. The total does not change while the work goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Work that is done.
    pub done: u64,
    /// All work, at least 1. The work is finished when `done` reaches it.
    pub total: u64,
}

impl Progress {
    /// The part that is done, from 0 to 1.
    pub fn fraction(&self) -> f64 {
        self.done as f64 / self.total as f64
    }

    /// Whether all work is done.
    pub fn is_done(&self) -> bool {
        self.done == self.total
    }
}

/// State of the slice under way.
#[derive(Debug, Default)]
struct FlightState {
    /// When the device finished the work submitted before the slice.
    begun: Option<Instant>,
    /// When the slice ended, which shows by its staging memory coming back; and whether that could be mapped.
    ended: Option<(bool, Instant)>,
    waker: Option<Waker>,
    /// Keeps the device polled until the slice has ended.
    polling: Option<Polling>,
}

/// One slice under way.
#[derive(Debug)]
struct Flight {
    state: Arc<Mutex<FlightState>>,
    submitted: Instant,
    parts: Vec<(Activity, f64)>,
    /// Expected nanoseconds, as counted by progress.
    nanoseconds: f64,
}

fn lock(state: &Mutex<FlightState>) -> MutexGuard<'_, FlightState> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Flight {
    /// Seconds on the device.
    fn seconds(&self) -> Option<f64> {
        let state = lock(&self.state);
        let (submitted, ended) = (self.submitted, state.ended?.1);
        // If the ends of the earlier work and of the slice were seen together, nobody polled in between, and the first says
        // nothing.
        let begun = state.begun.filter(|begun| ended - *begun >= POLL_PERIOD);
        Some((ended - begun.map_or(submitted, |begun| begun.max(submitted))).as_secs_f64())
    }
}

/// Where the next slice begins: a command, and how many units of this command (workgroups, or blocks of bytes) were submitted.
#[derive(Clone, Copy, Debug, Default)]
struct Position {
    command: usize,
    unit: u64,
}

/// A staging chunk, kept until its last upload is submitted.
struct Chunk {
    staged: StagingChunk,
    unmapped: bool,
    last_command: usize,
}

/// The contents of one slice.
#[derive(Default)]
struct Slice {
    commands: Vec<Command>,
    params: Vec<u8>,
    parts: Vec<(Activity, f64)>,
    nanoseconds: f64,
}

/// A recording that is submitted slice by slice, each about as long as [`SliceOptions`] say, so that an application's frames go in
/// between. The first dispatch of a kernel, which compiles it on some drivers, cannot be cut: warm up before.
///
/// From a task of any executor, or a thread:
///
/// ```no_run
/// # use dilated_attention::{Context, DType};
/// use dilated_attention::SliceOptions;
/// # let context = Context::new_blocking()?;
/// let mut recorder = context.recorder("long work");
/// // ... record a model's forward ...
/// let mut sliced = recorder.submit_in_slices(SliceOptions::default());
/// # pollster::block_on(async {
/// sliced.run(|progress| println!("{:.0} %", 100.0 * progress.fraction())).await
/// # })?;
/// # Ok::<(), dilated_attention::Error>(())
/// ```
///
/// From a loop of frames, call [`advance`](Self::advance) once a frame; it never blocks. To cancel, drop it.
///
/// Other work may be submitted between slices. It cannot read tensors that are half written ([`Error::NotWritten`]), and it
/// must not write tensors that the recording uses.
#[must_use = "nothing is submitted before it is advanced, and dropping it cancels the rest"]
pub struct SlicedSubmission {
    machine: Arc<Machine>,
    label: Label,
    options: SliceOptions,
    commands: Vec<Command>,
    /// Commands that one slice holds all of.
    uncut: Vec<Range<usize>>,
    params: Vec<u8>,
    /// Each lease with the last command that uses it.
    held: Vec<Option<(Lease, usize)>>,
    staging: Vec<Option<Chunk>>,
    readbacks: Vec<(Arc<Readback>, usize)>,
    tracker: Tracker,
    position: Position,
    /// Expected nanoseconds per unit of each command, as estimated when the submission began.
    unit_nanoseconds: Vec<f64>,
    done_nanoseconds: f64,
    total_nanoseconds: f64,
    num_slices: usize,
    flight: Option<Flight>,
    failed: Option<Error>,
}

impl SlicedSubmission {
    pub(super) fn new(
        machine: Arc<Machine>,
        mut recording: Recording,
        options: SliceOptions,
    ) -> Self {
        let take = std::mem::take::<Vec<Command>>;
        let commands = take(&mut recording.commands);
        let mut last_of_held = vec![0; recording.held.len()];
        let mut last_of_chunk = vec![0; recording.staging.len()];
        for (index, command) in commands.iter().enumerate() {
            match command {
                Command::Upload { chunk, to, .. } => {
                    last_of_chunk[*chunk] = index;
                    last_of_held[*to] = index;
                }
                Command::Copy { from, to, .. } => {
                    last_of_held[*from] = index;
                    last_of_held[*to] = index;
                }
                Command::Clear { to, .. } => last_of_held[*to] = index,
                Command::Dispatch { bindings, .. } => {
                    for (held, _) in bindings {
                        last_of_held[*held] = index;
                    }
                }
            }
        }
        let held = std::mem::take(&mut recording.held);
        let staging = std::mem::take(&mut recording.staging);
        let chunks = staging.into_iter().zip(last_of_chunk);
        let mut this = Self {
            machine,
            label: recording.label.clone(),
            options,
            uncut: std::mem::take(&mut recording.uncut),
            params: std::mem::take(&mut recording.params),
            held: held.into_iter().zip(last_of_held).map(Some).collect(),
            staging: chunks
                .map(|(staged, last_command)| {
                    Some(Chunk {
                        staged,
                        unmapped: false,
                        last_command,
                    })
                })
                .collect(),
            readbacks: std::mem::take(&mut recording.readbacks),
            tracker: std::mem::replace(
                &mut recording.tracker,
                Tracker::new(recording.label.clone()),
            ),
            position: Position::default(),
            unit_nanoseconds: Vec::new(),
            done_nanoseconds: 0.0,
            total_nanoseconds: 0.0,
            num_slices: 0,
            flight: None,
            failed: None,
            commands,
        };
        for (readback, _) in &this.readbacks {
            readback.in_slices();
        }
        {
            let cost_model = this.machine.cost_model();
            for command in &this.commands {
                let (activity, work) = this.unit(command);
                let nanoseconds = cost_model.seconds(activity, work) * 1e9;
                this.unit_nanoseconds.push(nanoseconds);
                this.total_nanoseconds += nanoseconds * units(command) as f64;
            }
        }
        this
    }

    /// Work of one unit of a command.
    fn unit(&self, command: &Command) -> (Activity, f64) {
        match command {
            Command::Upload { .. } | Command::Copy { .. } => (Activity::Copy, BLOCK_BYTES as f64),
            Command::Clear { .. } => (Activity::Clear, BLOCK_BYTES as f64),
            Command::Dispatch {
                kernel,
                params_offset,
                ..
            } => {
                let params = params_of(&self.params, *params_offset, *kernel);
                (Activity::Kernel(*kernel), kernel.workgroup_work(params))
            }
        }
    }

    /// How far the submission is, by the slices that are known to be done.
    pub fn progress(&self) -> Progress {
        let total = (self.total_nanoseconds as u64).max(1);
        let done = match self.is_done() {
            true => total,
            false => (self.done_nanoseconds as u64).min(total - 1),
        };
        Progress { done, total }
    }

    /// Whether all slices are known to be done.
    pub fn is_done(&self) -> bool {
        self.failed.is_none() && self.all_submitted() && self.flight.is_none()
    }

    fn all_submitted(&self) -> bool {
        self.num_slices > 0 && self.position.command >= self.commands.len()
    }

    /// Slices submitted so far.
    pub fn num_slices(&self) -> usize {
        self.num_slices
    }

    /// The target time of a slice.
    pub fn target(&self) -> Duration {
        self.options.target
    }

    /// Changes the target time, from the next slice on.
    pub fn set_target(&mut self, target: Duration) {
        self.options.target = target;
    }

    /// Cancels the rest, like dropping it: slices that were not submitted never run.
    pub fn cancel(self) {
        drop(self);
    }

    /// Submits the next slice if the last one is done. Never blocks. Call it once a frame.
    ///
    /// # Errors
    /// [`Error::DeviceLost`], and as [`Recorder::submit`](super::Recorder::submit). An error cancels the rest, and every
    /// later call returns it again.
    pub fn advance(&mut self) -> Result<Progress> {
        // A loss shows below, in the state of the slice under way.
        let _ = self.machine.watch().poll();
        if self.settle(None)?.is_ready() && !self.all_submitted() {
            self.submit_slice()?;
        }
        Ok(self.progress())
    }

    /// Submits the next slice and resolves when it is done, never at the first poll. Dropping the future cancels nothing:
    /// the next call waits for the slice under way.
    ///
    /// # Errors
    /// As [`advance`](Self::advance).
    pub async fn step(&mut self) -> Result<Progress> {
        self.settled().await?;
        if !self.all_submitted() {
            self.submit_slice()?;
            // Gives way once per slice, even if the device is done already, so that other tasks on this executor get their
            // turn.
            give_way().await;
            self.settled().await?;
        }
        Ok(self.progress())
    }

    /// Submits all slices, one after the other, and calls `progress` after each. Its future may be dropped like that of
    /// [`step`](Self::step); call it again to go on.
    ///
    /// # Errors
    /// As [`advance`](Self::advance).
    pub async fn run(&mut self, mut progress: impl FnMut(Progress)) -> Result<()> {
        loop {
            let now = self.step().await?;
            progress(now);
            if now.is_done() {
                return Ok(());
            }
        }
    }

    async fn settled(&mut self) -> Result<()> {
        poll_fn(|context| match self.settle(Some(context.waker())) {
            Ok(settled) => settled.map(Ok),
            Err(error) => Poll::Ready(Err(error)),
        })
        .await
    }

    /// Settles the slice under way if it is done. Otherwise `waker` is woken when it is.
    fn settle(&mut self, waker: Option<&Waker>) -> Result<Poll<()>> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let Some(flight) = &self.flight else {
            return Ok(Poll::Ready(()));
        };
        let ended = {
            let mut state = lock(&flight.state);
            if state.ended.is_none() {
                state.waker = waker.cloned();
            }
            state.ended
        };
        let Some((mapped, _)) = ended else {
            return Ok(Poll::Pending);
        };
        if !mapped {
            let never = "memory of a slice could not be mapped again";
            let error = self.machine.watch().lost_error(never);
            return Err(self.fail(error));
        }
        if let Some(flight) = self.flight.take() {
            self.done_nanoseconds += flight.nanoseconds;
            if let Some(seconds) = flight.seconds() {
                self.machine.cost_model().learn(&flight.parts, seconds);
            }
        }
        Ok(Poll::Ready(()))
    }

    fn fail(&mut self, error: Error) -> Error {
        self.release();
        self.flight = None;
        self.failed = Some(error.clone());
        error
    }

    fn submit_slice(&mut self) -> Result<()> {
        let before = self.position;
        let submitted = match self.num_slices {
            0 => self
                .machine
                .watch()
                .check()
                .and_then(|()| self.tracker.check()),
            _ => Ok(()),
        };
        let runner = self.machine.runner;
        let submitted = submitted.and_then(|()| runner.submit_slice(self));
        self.num_slices += 1;
        if let Err(error) = submitted {
            self.position = before;
            return Err(self.fail(error));
        }
        match self.all_submitted() {
            true => self.tracker.submitted(),
            false => self.tracker.submitted_up_to(self.reached()),
        }
        Ok(())
    }

    /// The first command that is not fully submitted, and whether a part of it is.
    fn reached(&self) -> (usize, bool) {
        (self.position.command, self.position.unit > 0)
    }

    /// Skips all commands as if they had been submitted. Downloads fail with the reason `never`.
    #[cfg(feature = "dry-run")]
    pub(super) fn skip_all(&mut self, never: &'static str) {
        self.position.command = self.commands.len();
        for (readback, _) in self.readbacks.drain(..) {
            readback.abandon(never);
        }
    }

    /// Submits the next slice: work that is expected to take the target time.
    pub(super) fn submit_next(&mut self) -> Result<()> {
        let mut slice = self.next_slice();
        // Even a slice without kernels has a staging chunk that is mapped again, because the mapping tells when the slice is
        // done.
        slice.params.resize(slice.params.len().max(4), 0);
        let (machine, label) = (self.machine.clone(), self.label.clone());
        // The upload of the slice's parameters comes first.
        let mut own = Recording::new(&machine, self.label.clone());
        own.params = std::mem::take(&mut slice.params);
        let params = own.stage_params(&machine)?;
        let state = Arc::new(Mutex::new(FlightState::default()));
        let before = state.clone();
        machine.watch().guard(|| {
            machine
                .queue()
                .on_submitted_work_done(move || lock(&before).begun = Some(Instant::now()));
        })?;
        let submitted = Instant::now();
        let complete = self.position.command;
        let (arriving, later) = std::mem::take(&mut self.readbacks)
            .into_iter()
            .partition(|(_, commands)| *commands <= complete);
        self.readbacks = later;
        let arriving = Arriving(arriving);
        encode::submit(&machine, &label, |encoder| {
            for command in &slice.commands {
                if let Command::Upload { chunk, .. } = command
                    && let Some(Some(chunk)) = self.staging.get_mut(*chunk)
                    && !chunk.unmapped
                {
                    chunk.staged.lease.buffer().unmap();
                    chunk.unmapped = true;
                }
            }
            let mut own_staging = Unmapped::new(std::mem::take(&mut own.staging));
            let copy_params = Buffers {
                held: &|held| own.held.get(held),
                staging: &|chunk| own_staging.0.get(chunk),
                params: None,
            };
            encode::record(&machine, &label, encoder, &own.commands, &copy_params)?;
            let buffers = Buffers {
                held: &|held| Some(&self.held.get(held)?.as_ref()?.0),
                staging: &|chunk| Some(&self.staging.get(chunk)?.as_ref()?.staged),
                params: params.and_then(|params| own.held.get(params)),
            };
            encode::record(&machine, &label, encoder, &slice.commands, &buffers)?;
            for (chunk, then) in own_staging
                .0
                .drain(..)
                .zip(std::iter::repeat(state.clone()))
            {
                map_again_on_submit(machine.watch(), chunk.lease, encoder, move |outcome| {
                    end(&then, outcome == Outcome::Done);
                });
            }
            for chunk in &mut self.staging {
                if let Some(done) = chunk.take_if(|chunk| chunk.last_command < complete) {
                    let lease = done.staged.lease;
                    map_again_on_submit(machine.watch(), lease, encoder, |_| ());
                }
            }
            for (readback, _) in &arriving.0 {
                readback.map_on_submit(encoder);
            }
            Ok(())
        })?;
        for (readback, _) in &arriving.0 {
            readback.submitted();
        }
        for held in &mut self.held {
            held.take_if(|(_, last_command)| *last_command < complete);
        }
        {
            let mut state = lock(&state);
            if state.ended.is_none() {
                state.polling = Some(machine.watch().keep_polling(POLL_PERIOD));
            }
        }
        self.flight = Some(Flight {
            state,
            submitted,
            parts: slice.parts,
            nanoseconds: slice.nanoseconds,
        });
        Ok(())
    }

    /// Takes commands that are expected to take the target time, at least one unit.
    fn next_slice(&mut self) -> Slice {
        let most_workgroups = u64::from(self.machine.caps().max_workgroups_per_dimension);
        let machine = self.machine.clone();
        let cost_model = machine.cost_model();
        let mut slice = Slice::default();
        let mut left = self.options.target.as_secs_f64();
        while let Some(command) = self.commands.get(self.position.command) {
            if let Some(part) = self.uncut_here() {
                let seconds = self.expected_seconds(&cost_model, part.clone());
                if !slice.parts.is_empty() && seconds > left {
                    break;
                }
                for command in part {
                    let count = units(&self.commands[command]);
                    self.take(&mut slice, count);
                }
                left -= seconds;
                continue;
            }
            let all = units(command);
            let begin = self.position.unit;
            let (activity, work) = self.unit(command);
            let fitting = fitting(&cost_model, activity, work, left);
            let at_least = u64::from(slice.parts.is_empty());
            let mut count = fitting.max(at_least).min(all - begin);
            if count == 0 && begin < all {
                break;
            }
            if count < all && matches!(command, Command::Dispatch { .. }) {
                count = count.min(most_workgroups);
            }
            self.take(&mut slice, count);
            left -= cost_model.seconds(activity, work * count as f64);
        }
        slice
    }

    /// The commands from here on that one slice must hold all of.
    fn uncut_here(&self) -> Option<Range<usize>> {
        let here = self.position.command;
        let mut parts = self.uncut.iter();
        parts.find(|part| part.start == here).cloned()
    }

    /// Seconds that whole commands are expected to take.
    fn expected_seconds(&self, cost_model: &CostModel, commands: Range<usize>) -> f64 {
        let seconds = |command: &Command| {
            let (activity, work) = self.unit(command);
            cost_model.seconds(activity, work * units(command) as f64)
        };
        self.commands[commands].iter().map(seconds).sum()
    }

    /// Moves the next `count` units of the command that comes next to `slice`.
    fn take(&mut self, slice: &mut Slice, count: u64) {
        let Position {
            command: index,
            unit: begin,
        } = self.position;
        let command = &self.commands[index];
        let all = units(command);
        if count > 0 {
            let (activity, work) = self.unit(command);
            let part = match count == all {
                true => command.clone(),
                false => part(command, begin, count),
            };
            let part = self.with_params(part, begin, &mut slice.params);
            slice.commands.push(part);
            slice.parts.push((activity, work * count as f64));
            slice.nanoseconds += self.unit_nanoseconds[index] * count as f64;
        }
        self.position = match begin + count >= all {
            true => Position {
                command: index + 1,
                unit: 0,
            },
            false => Position {
                command: index,
                unit: begin + count,
            },
        };
    }

    /// A dispatch with its parameters in those of the slice, and its workgroups numbered from `first` on.
    fn with_params(&self, mut command: Command, first: u64, params: &mut Vec<u8>) -> Command {
        let alignment = self.machine.caps().uniform_offset_alignment as usize;
        if let Command::Dispatch {
            kernel,
            params_offset,
            ..
        } = &mut command
        {
            let begin = params.len().next_multiple_of(alignment);
            params.resize(begin, 0);
            params.extend_from_slice(params_of(&self.params, *params_offset, *kernel));
            if let Some(field) = kernel.first_workgroup_offset()
                && let Some(number) = params.get_mut(begin + field..begin + field + 4)
            {
                number.copy_from_slice(&(first as u32).to_le_bytes());
            }
            // Fits in 32 bits, because it is at most the offset in the whole recording.
            *params_offset = begin as u32;
        }
        command
    }

    /// Gives back the leases of commands that will not be submitted, and fails their downloads.
    fn release(&mut self) {
        self.held.clear();
        for chunk in self.staging.drain(..).flatten() {
            if chunk.unmapped {
                let buffer = chunk.staged.lease.buffer().clone();
                if let Ok(pending) = chunk.staged.lease.suspend() {
                    // A lost device has destroyed the buffer and hands nothing back.
                    let watch = self.machine.watch();
                    let ticket = watch.expect(move |outcome| {
                        if outcome == Outcome::Done {
                            pending.ready();
                        }
                    });
                    let _ = scope::catch(watch, || {
                        buffer.map_async(wgpu::MapMode::Write, .., move |result| {
                            ticket.mapped(result);
                        });
                    });
                }
            }
        }
        for (readback, _) in self.readbacks.drain(..) {
            readback.abandon(CANCELLED);
        }
        // Only once, because tensors that were written anew after a failure are whole.
        if self.failed.is_none() && !self.all_submitted() {
            self.tracker.cancelled(self.reached());
        }
    }
}

impl Drop for SlicedSubmission {
    fn drop(&mut self) {
        self.release();
    }
}

impl std::fmt::Debug for SlicedSubmission {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SlicedSubmission")
            .field("label", &self.label)
            .field("options", &self.options)
            .field("position", &self.position)
            .field("num_slices", &self.num_slices)
            .field("failed", &self.failed)
            .finish_non_exhaustive()
    }
}

/// A future that is pending once and asks to be polled again at once.
async fn give_way() {
    let mut given = false;
    poll_fn(|context| {
        if std::mem::replace(&mut given, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Downloads of one slice. They fail if the slice is not submitted.
struct Arriving(Vec<(Arc<Readback>, usize)>);

impl Drop for Arriving {
    fn drop(&mut self) {
        for (readback, _) in &self.0 {
            readback.abandon(CANCELLED);
        }
    }
}

/// Called when the slice is done or its device is lost.
fn end(state: &Mutex<FlightState>, mapped: bool) {
    let (waker, polling) = {
        let mut state = lock(state);
        state.ended = Some((mapped, Instant::now()));
        (state.waker.take(), state.polling.take())
    };
    drop(polling);
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// Number of units that are expected to take `left` seconds.
fn fitting(cost_model: &CostModel, activity: Activity, work: f64, left: f64) -> u64 {
    // Saturates.
    (cost_model.allowed(activity, left) / cost_model.seconds(activity, work)) as u64
}

/// Number of units that a command can be cut into.
fn units(command: &Command) -> u64 {
    match command {
        Command::Upload { bytes, .. } | Command::Copy { bytes, .. } => bytes.div_ceil(BLOCK_BYTES),
        Command::Clear { range, .. } => range.size.div_ceil(BLOCK_BYTES),
        Command::Dispatch { grid, .. } => u64::from(grid[0]) * u64::from(grid[1]),
    }
}

/// The part of a command from unit `begin` on, `count` units.
fn part(command: &Command, begin: u64, count: u64) -> Command {
    let mut part = command.clone();
    let skip = begin * BLOCK_BYTES;
    let size = |bytes: u64| (bytes - skip).min(count * BLOCK_BYTES);
    match &mut part {
        Command::Upload {
            chunk_offset,
            offset,
            bytes,
            ..
        }
        | Command::Copy {
            from_offset: chunk_offset,
            to_offset: offset,
            bytes,
            ..
        } => {
            *chunk_offset += skip;
            *offset += skip;
            *bytes = size(*bytes);
        }
        Command::Clear { range, .. } => {
            *range = ByteRange {
                offset: range.offset + skip,
                size: size(range.size),
            };
        }
        Command::Dispatch { grid, .. } => *grid = [count as u32, 1],
    }
    part
}
