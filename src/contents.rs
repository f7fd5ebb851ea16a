//! Whether what a tensor holds was ever computed.
//!
//! Recording says what *will* write a tensor; only submission makes it so. A recording that is dropped, refused or cancelled
//! leaves its tensors with whatever their buffers held before, which looks like a result. So every tensor has [`Contents`],
//! which know whether a recording that writes them was submitted, and every recording a [`Tracker`], which knows what it reads
//! and writes. The question is asked when a recording is submitted, since the order of submission is the order of execution: a
//! reader may well be recorded before its writer is submitted.
//!
//! * Contents are held once a recording that writes them was submitted, and stay so: a later recording that is dropped leaves
//!   the values of before, which are true ones. Any write of a tensor counts, also of a part (kernels write windows, a cache
//!   rows); a part of a *slab* of parameters does not count for the slab.
//! * What a cancelled sliced submission has begun to write is torn, until it is written anew.
//! * What went into an application's encoder counts as submitted for the library's own later recordings, since only the
//!   application knows when it submits; once the device is done with the encoder, or it was dropped or refused, that is known
//!   here as well.
//!
//! It costs an allocation per tensor (its shape is one, too) and a few loads per binding; a lock is taken only where a tensor
//! has no contents yet.

use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};

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
    /// Why what such a recording was to write is not there, and what to do.
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

/// A recording, as the tensors that it writes know it.
#[derive(Debug)]
pub(crate) struct WriterState {
    /// Unique in the process, from 1.
    id: u64,
    label: &'static str,
    fate: Mutex<Fate>,
}

impl WriterState {
    fn new(label: &'static str) -> Arc<Self> {
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

/// Nothing was submitted that writes the tensor.
const NOTHING: u8 = 0;
/// Something was.
const HELD: u8 = 1;
/// Only a part of a recording that writes it was.
const TORN: u8 = 2;

/// What is known of the contents of a tensor; clones and parts of the tensor share it.
#[derive(Debug)]
pub(crate) struct Contents {
    label: &'static str,
    state: AtomicU8,
    /// The recordings that read and wrote it last, and the number of the write in its recording: so that most recordings
    /// find what they know of a tensor without a search.
    last_reader: AtomicU64,
    last_writer: AtomicU64,
    last_write: AtomicUsize,
    /// Why it holds nothing, while it does not.
    writer: Mutex<Option<Arc<WriterState>>>,
}

impl Contents {
    pub fn new(label: &'static str) -> Arc<Self> {
        Arc::new(Self {
            label,
            state: AtomicU8::new(NOTHING),
            last_reader: AtomicU64::new(0),
            last_writer: AtomicU64::new(0),
            last_write: AtomicUsize::new(0),
            writer: Mutex::new(None),
        })
    }

    /// Whether a recording that writes them was submitted.
    pub fn are_held(&self) -> bool {
        self.state.load(Ordering::Acquire) == HELD
    }

    fn set(&self, state: u8) {
        self.state.store(state, Ordering::Release);
    }

    /// Whether `reader` may read them if it is submitted now.
    fn check(&self, reader: &'static str) -> Result<()> {
        if self.are_held() {
            return Ok(());
        }
        let writer = lock(&self.writer).clone();
        let fate = writer.as_ref().map(|writer| writer.fate());
        if fate == Some(Fate::Encoded) {
            return Ok(());
        }
        Err(Error::NotWritten {
            label: self.label,
            reader,
            writer: writer.map(|writer| writer.label),
            reason: fate.map_or(
                "nothing that was recorded writes it: upload, clear or compute it before",
                Fate::reason,
            ),
        })
    }
}

/// A tensor that a recording writes.
#[derive(Debug)]
struct Write {
    contents: Arc<Contents>,
    /// Whether that fills the contents, or only a part of a slab.
    fills: bool,
    /// Numbers of the first and last command that do.
    first: usize,
    last: usize,
}

/// What a recording reads and writes, and what becomes of it. Dropped before it was submitted, it tells the tensors.
#[derive(Debug)]
pub(crate) struct Tracker {
    recording: Arc<WriterState>,
    /// What it reads that it has not written before.
    reads: Vec<Arc<Contents>>,
    writes: Vec<Write>,
}

impl Tracker {
    pub fn new(label: &'static str) -> Self {
        Self {
            recording: WriterState::new(label),
            reads: Vec::new(),
            writes: Vec::new(),
        }
    }

    /// What became of it so far.
    pub fn fate(&self) -> Fate {
        self.recording.fate()
    }

    /// The number of its write of `contents`.
    fn write_of(&self, contents: &Arc<Contents>) -> Option<usize> {
        let is_of = |write: &Write| Arc::ptr_eq(&write.contents, contents);
        let hint = contents.last_write.load(Ordering::Relaxed);
        if self.writes.get(hint).is_some_and(is_of) {
            return Some(hint);
        }
        if contents.last_writer.load(Ordering::Relaxed) == 0 {
            return None;
        }
        // Another recording wrote it since, if this one has at all.
        self.writes.iter().position(is_of)
    }

    /// The next command reads `contents`.
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

    /// Command number `command` writes `contents`; `fills` when not only a part of a slab.
    pub fn write(&mut self, contents: &Arc<Contents>, fills: bool, command: usize) {
        if let Some(write) = self.write_of(contents) {
            let write = &mut self.writes[write];
            write.last = command;
            write.fills |= fills;
            return;
        }
        // Whoever has read them before changes them in place: not the recording to wait for.
        let changes = contents.last_reader.load(Ordering::Relaxed) == self.recording.id;
        if fills && !changes && !contents.are_held() {
            let mut writer = lock(&contents.writer);
            // What an encoder will write, if it is submitted, is there whatever becomes of this recording.
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

    /// Whether all that it reads is there, if it is submitted now.
    ///
    /// # Errors
    /// [`Error::NotWritten`] names a tensor that is not.
    pub fn check(&self) -> Result<()> {
        let label = self.recording.label;
        self.reads.iter().try_for_each(|read| read.check(label))
    }

    /// All of it was submitted.
    pub fn submitted(&self) {
        self.recording.set(Fate::Submitted);
        for write in self.writes.iter().filter(|write| write.fills) {
            write.contents.set(HELD);
        }
    }

    /// What it was to do has not happened and will not.
    pub fn failed(&self, fate: Fate) {
        self.recording.set(fate);
    }

    /// It went into an encoder of the application's.
    pub fn encoded(&self) {
        self.recording.set(Fate::Encoded);
    }

    /// The commands before `reached` were submitted, and of that one a part, if it was `begun`.
    pub fn submitted_up_to(&self, reached: (usize, bool)) {
        self.recording.set(Fate::Slicing);
        self.tear(reached);
    }

    /// No more than that will be submitted.
    pub fn cancelled(&self, reached: (usize, bool)) {
        self.recording.set(Fate::Cancelled);
        self.tear(reached);
    }

    fn tear(&self, (command, begun): (usize, bool)) {
        for write in &self.writes {
            if write.last < command {
                if write.fills {
                    write.contents.set(HELD);
                }
            } else if write.first < command || begun && write.first == command {
                *lock(&write.contents.writer) = Some(self.recording.clone());
                write.contents.set(TORN);
            }
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
