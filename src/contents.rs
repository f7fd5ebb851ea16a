//! Tracks whether a tensor's contents were ever computed.
//!
//! A recording *will* write its tensors; only submission makes that happen. A recording that is dropped, refused or
//! cancelled leaves its tensors with whatever their buffers held before, and that looks like a result. So every tensor has
//! [`Contents`], which know whether a recording that writes the tensor was submitted. Every recording has a [`Tracker`],
//! which knows what it reads and writes. The check happens when a recording is submitted, because the order of submission is
//! the order of execution: a reader may be recorded before its writer is submitted.
//!
//! * Contents are *held* once a recording that writes them was submitted. They stay held: a later recording that is dropped
//!   leaves the earlier values, which are valid. Any write of the tensor counts, even of a part of it, because kernels write
//!   windows and caches write rows. But a write of a view does not count for what it is a view of: that of one parameter not for the
//!   *slab* of parameters that holds it.
//! * What the application's own commands write, it has to tell ([`Tensor::mark_written`](crate::Tensor::mark_written)).
//! * Contents that a cancelled sliced submission has begun to write are *torn* until they are written anew.
//! * A recording in an application's encoder counts as submitted for later recordings, because only the application knows
//!   when it submits. If the encoder is dropped or refused, later recordings are told.
//!
//! This costs one allocation per tensor, beside that of its shape, and a few loads per binding. A lock is taken only while a
//! tensor has no contents yet.

use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};
use crate::label::Label;

/// What became of a recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Recorded,
    Dropped,
    Refused,
    Slicing,
    Cancelled,
    Encoded,
    EncoderDropped,
    EncoderRefused,
    Submitted,
}

impl Fate {
    /// Why the recording's results are missing, and what to do.
    fn reason(self) -> &'static str {
        match self {
            Self::Recorded => "was not submitted yet: submit it before",
            Self::Dropped => "was dropped unsubmitted: record and submit it again",
            Self::Refused => "was refused when it was submitted: record and submit it again",
            Self::Slicing => {
                "is submitted in slices that are not all done: advance them to the end before"
            }
            Self::Cancelled => {
                "was cancelled before it had written all of it: write it anew before"
            }
            Self::EncoderDropped => {
                "went into an encoder that was dropped unsubmitted: record it again"
            }
            Self::EncoderRefused => {
                "went into an encoder that wgpu refused to run: see its error, then record it again"
            }
            Self::Encoded | Self::Submitted => "has not run",
        }
    }
}

/// The state of a recording, shared with the tensors that it writes.
#[derive(Debug)]
pub(crate) struct WriterState {
    /// Number of the recording, unique in the process, from 1.
    id: u64,
    label: Label,
    fate: Mutex<Fate>,
}

impl WriterState {
    fn new(label: Label) -> Arc<Self> {
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        Arc::new(Self {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            label,
            fate: Mutex::new(Fate::Recorded),
        })
    }

    fn fate(&self) -> Fate {
        *lock(&self.fate)
    }

    fn set(&self, fate: Fate) {
        *lock(&self.fate) = fate;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// No recording that writes the tensor was submitted.
const NOTHING: u8 = 0;
/// A recording that writes the tensor was submitted.
const HELD: u8 = 1;
/// Only a part of a recording that writes the tensor was submitted.
const TORN: u8 = 2;

/// The state of a tensor's contents, shared by its clones and parts.
#[derive(Debug)]
pub(crate) struct Contents {
    label: Label,
    state: AtomicU8,
    /// The recordings that last read and wrote it, and the index of the write in its recording. With these, most recordings
    /// find their entry of a tensor without a search.
    last_reader: AtomicU64,
    last_writer: AtomicU64,
    last_write: AtomicUsize,
    /// While the tensor holds nothing: the recording that is to write it.
    writer: Mutex<Option<Arc<WriterState>>>,
}

impl Contents {
    pub fn new(label: impl Into<Label>) -> Arc<Self> {
        Arc::new(Self {
            label: label.into(),
            state: AtomicU8::new(NOTHING),
            last_reader: AtomicU64::new(0),
            last_writer: AtomicU64::new(0),
            last_write: AtomicUsize::new(0),
            writer: Mutex::new(None),
        })
    }

    /// Whether a recording that writes the contents was submitted.
    pub fn are_held(&self) -> bool {
        self.state.load(Ordering::Acquire) == HELD
    }

    fn is_torn(&self) -> bool {
        self.state.load(Ordering::Acquire) == TORN
    }

    /// Whether a recording that writes the contents may still be submitted, or is in an encoder that has not run yet.
    #[cfg(feature = "training")]
    pub fn are_pending(&self) -> bool {
        let writer = lock(&self.writer).clone();
        let fate = writer.map(|writer| writer.fate());
        let pending = matches!(fate, Some(Fate::Recorded | Fate::Slicing | Fate::Encoded));
        pending && !self.are_held()
    }

    fn set(&self, state: u8) {
        self.state.store(state, Ordering::Release);
    }

    /// The application wrote them.
    pub fn mark_written(&self) {
        *lock(&self.writer) = None;
        self.set(HELD);
    }

    /// Whether the recording `reader` may read the contents if it is submitted now.
    fn check(&self, reader: &Label) -> Result<()> {
        if self.are_held() {
            return Ok(());
        }
        let writer = lock(&self.writer).clone();
        let fate = writer.as_ref().map(|writer| writer.fate());
        if fate == Some(Fate::Encoded) {
            return Ok(());
        }
        Err(Error::NotWritten {
            label: self.label.clone(),
            reader: reader.clone(),
            writer: writer.map(|writer| writer.label.clone()),
            reason: fate.map_or(
                "nothing that was recorded writes it: upload, clear or compute it before, or tell that your own commands wrote \
                 it (Tensor::mark_written)",
                Fate::reason,
            ),
        })
    }
}

/// A tensor that a recording writes.
#[derive(Debug)]
struct Write {
    contents: Arc<Contents>,
    /// Whether the write fills the contents, rather than a part of a slab.
    fills: bool,
    /// Indices of the first and last command that write it.
    first: usize,
    last: usize,
}

/// What a recording reads and writes, and what became of it. If it is dropped before submission, it marks the tensors
/// accordingly.
#[derive(Debug)]
pub(crate) struct Tracker {
    recording: Arc<WriterState>,
    /// Contents that the recording reads before it writes them.
    reads: Vec<Arc<Contents>>,
    writes: Vec<Write>,
}

impl Tracker {
    pub fn new(label: Label) -> Self {
        Self {
            recording: WriterState::new(label),
            reads: Vec::new(),
            writes: Vec::new(),
        }
    }

    /// What has become of the recording so far.
    pub fn fate(&self) -> Fate {
        self.recording.fate()
    }

    /// Index of the recording's write of `contents`.
    fn write_of(&self, contents: &Arc<Contents>) -> Option<usize> {
        let is_of = |write: &Write| Arc::ptr_eq(&write.contents, contents);
        let hint = contents.last_write.load(Ordering::Relaxed);
        if self.writes.get(hint).is_some_and(is_of) {
            return Some(hint);
        }
        if contents.last_writer.load(Ordering::Relaxed) == 0 {
            return None;
        }
        // If this recording wrote it at all, another one has written it since.
        self.writes.iter().position(is_of)
    }

    /// Notes that the next command reads `contents`.
    pub fn read(&mut self, contents: &Arc<Contents>) {
        let id = self.recording.id;
        if contents.last_reader.load(Ordering::Relaxed) == id {
            return;
        }
        if self
            .write_of(contents)
            .is_some_and(|write| self.writes[write].fills)
        {
            return;
        }
        contents.last_reader.store(id, Ordering::Relaxed);
        self.reads.push(contents.clone());
    }

    /// Notes that command number `command` writes `contents`. `fills`: all of it, rather than a part of a slab.
    pub fn write(&mut self, contents: &Arc<Contents>, fills: bool, command: usize) {
        if let Some(write) = self.write_of(contents) {
            let write = &mut self.writes[write];
            write.last = command;
            write.fills |= fills;
            return;
        }
        // A recording that has read the contents changes them in place, so it is not the one to wait for.
        let changes = contents.last_reader.load(Ordering::Relaxed) == self.recording.id;
        if fills && !changes && !contents.are_held() {
            let mut writer = lock(&contents.writer);
            // An application's encoder that was to write them may still be submitted, whatever becomes of this recording.
            if writer
                .as_ref()
                .is_none_or(|writer| writer.fate() != Fate::Encoded)
            {
                *writer = Some(self.recording.clone());
            }
        }
        contents
            .last_write
            .store(self.writes.len(), Ordering::Relaxed);
        contents
            .last_writer
            .store(self.recording.id, Ordering::Relaxed);
        self.writes.push(Write {
            contents: contents.clone(),
            fills,
            first: command,
            last: command,
        });
    }

    /// Whether everything that the recording reads will be there if it is submitted now.
    ///
    /// # Errors
    /// [`Error::NotWritten`] names a tensor that will not.
    pub fn check(&self) -> Result<()> {
        let label = &self.recording.label;
        self.reads.iter().try_for_each(|read| read.check(label))
    }

    /// Marks the whole recording as submitted.
    pub fn submitted(&self) {
        // The contents first: a thread that sees that the recording has ended must see what it has written.
        for write in &self.writes {
            self.wrote(write);
        }
        self.recording.set(Fate::Submitted);
    }

    /// Marks the recording as never to run.
    pub fn failed(&self, fate: Fate) {
        self.recording.set(fate);
    }

    /// Marks the recording as part of an application's encoder.
    pub fn encoded(&self) {
        self.recording.set(Fate::Encoded);
    }

    /// Marks the commands before number `reached.0` as submitted, and if `reached.1` is true a part of that one.
    pub fn submitted_up_to(&self, reached: (usize, bool)) {
        self.recording.set(Fate::Slicing);
        self.tear(reached);
    }

    /// Marks the rest as never to be submitted.
    pub fn cancelled(&self, reached: (usize, bool)) {
        self.recording.set(Fate::Cancelled);
        self.tear(reached);
    }

    fn tear(&self, (command, begun): (usize, bool)) {
        for write in &self.writes {
            if write.last < command {
                self.wrote(write);
            } else if write.first < command || begun && write.first == command {
                // What does not fill contents that hold nothing leaves them so.
                if write.fills || write.contents.are_held() {
                    *lock(&write.contents.writer) = Some(self.recording.clone());
                    write.contents.set(TORN);
                }
            }
        }
    }

    /// Marks a write as submitted. What does not fill the contents gives back what it had torn itself.
    fn wrote(&self, write: &Write) {
        let is_own = |writer: &Arc<WriterState>| Arc::ptr_eq(writer, &self.recording);
        let tore = || {
            write.contents.is_torn() && lock(&write.contents.writer).as_ref().is_some_and(is_own)
        };
        if write.fills || tore() {
            write.contents.set(HELD);
        }
    }
}

impl Drop for Tracker {
    fn drop(&mut self) {
        let mut fate = lock(&self.recording.fate);
        if *fate == Fate::Recorded {
            *fate = Fate::Dropped;
        }
    }
}
