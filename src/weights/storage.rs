//! Where the bytes of a file of weights are: in memory, or on a disk, from where they are read when they are needed.

use std::borrow::Cow;

use crate::error::WeightsError;

#[cfg(not(target_arch = "wasm32"))]
pub(super) use disk::DiskFile;

/// Bytes that can be read at any place.
pub(super) enum Storage {
    Memory(Vec<u8>),
    #[cfg(not(target_arch = "wasm32"))]
    Disk(DiskFile),
}

/// Why bytes that should be there could not be read.
#[derive(Debug)]
pub(super) enum ReadError {
    /// The file is another than when it was opened; it has so many bytes now.
    Changed(u64),
    /// The system's words.
    #[cfg(not(target_arch = "wasm32"))]
    Refused(String),
}

impl Storage {
    /// How many bytes there are, or were when the file was opened.
    pub fn len(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            #[cfg(not(target_arch = "wasm32"))]
            Self::Disk(file) => file.len(),
        }
    }

    /// So many bytes from `offset` on.
    pub fn get(&self, offset: u64, bytes: usize) -> Result<Cow<'_, [u8]>, ReadError> {
        match self {
            Self::Memory(all) => memory(all, offset, bytes).map(Cow::Borrowed),
            #[cfg(not(target_arch = "wasm32"))]
            Self::Disk(file) => {
                let mut out = vec![0; bytes];
                file.read(offset, &mut out)?;
                Ok(Cow::Owned(out))
            }
        }
    }

    /// Fills `out` with the bytes from `offset` on.
    pub fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), ReadError> {
        match self {
            Self::Memory(all) => {
                out.copy_from_slice(memory(all, offset, out.len())?);
                Ok(())
            }
            #[cfg(not(target_arch = "wasm32"))]
            Self::Disk(file) => file.read(offset, out),
        }
    }

    /// [`ReadError::Changed`] when what was read before may not be what was in the file when it was opened.
    pub fn check_unchanged(&self) -> Result<(), ReadError> {
        match self {
            Self::Memory(_) => Ok(()),
            #[cfg(not(target_arch = "wasm32"))]
            Self::Disk(file) => file.check_unchanged(),
        }
    }
}

fn memory(all: &[u8], offset: u64, bytes: usize) -> Result<&[u8], ReadError> {
    let from = usize::try_from(offset).ok();
    let rest = from.and_then(|from| all.get(from..));
    let found = rest.and_then(|rest| rest.get(..bytes));
    found.ok_or(ReadError::Changed(all.len() as u64))
}

impl ReadError {
    /// As reading `part` of the file called `file`, opened with `expected_bytes`, tells it.
    pub fn told(self, file: &str, part: String, offset: u64, expected_bytes: u64) -> WeightsError {
        let file = file.to_owned();
        match self {
            Self::Changed(given_bytes) => WeightsError::FileChanged {
                file,
                part,
                offset,
                given_bytes,
                expected_bytes,
            },
            #[cfg(not(target_arch = "wasm32"))]
            Self::Refused(reason) => WeightsError::Unreadable {
                file,
                part,
                offset,
                reason,
            },
        }
    }
}

#[cfg(not(target_arch = "wasm32"))]
mod disk {
    use std::fs::{File, Metadata};
    use std::io::{self, ErrorKind};
    use std::path::Path;
    use std::time::SystemTime;

    use super::ReadError;

    /// A file that is open, and what it was like when it was opened.
    ///
    /// It is read, not mapped: a mapped file that others cut off ends the program, and one that they change breaks what Rust
    /// promises of a slice.
    pub struct DiskFile {
        file: File,
        opened: State,
    }

    /// What tells that a file was written to. (The time at which its entry changed would tell more, but also changes when the file
    /// is renamed, linked, or replaced by a new one, which does no harm.)
    #[derive(Clone, Copy, PartialEq, Eq)]
    struct State {
        len: u64,
        /// None where the file system keeps no such time.
        modified: Option<SystemTime>,
    }

    impl From<Metadata> for State {
        fn from(metadata: Metadata) -> Self {
            Self {
                len: metadata.len(),
                modified: metadata.modified().ok(),
            }
        }
    }

    impl DiskFile {
        /// Opens the regular file at `path`.
        pub fn open(path: &Path) -> io::Result<Self> {
            // Asked before it is opened, too: to open a pipe would wait for its other end.
            regular(std::fs::metadata(path)?)?;
            let file = File::open(path)?;
            let opened = regular(file.metadata()?)?.into();
            Ok(Self { file, opened })
        }

        pub fn len(&self) -> u64 {
            self.opened.len
        }

        pub fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), ReadError> {
            match read_exact_at(&self.file, offset, out) {
                Ok(()) => Ok(()),
                // It was longer.
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                    self.check_unchanged()?;
                    Err(ReadError::Refused(error.to_string()))
                }
                Err(error) => Err(ReadError::Refused(error.to_string())),
            }
        }

        pub fn check_unchanged(&self) -> Result<(), ReadError> {
            let now = self.now()?;
            match now == self.opened {
                true => Ok(()),
                false => Err(ReadError::Changed(now.len)),
            }
        }

        fn now(&self) -> Result<State, ReadError> {
            let metadata = self.file.metadata();
            metadata
                .map(State::from)
                .map_err(|error| ReadError::Refused(error.to_string()))
        }
    }

    fn regular(metadata: Metadata) -> io::Result<Metadata> {
        match metadata.is_file() {
            true => Ok(metadata),
            false => Err(io::Error::new(ErrorKind::InvalidInput, "it is no regular file")),
        }
    }

    #[cfg(unix)]
    fn read_exact_at(file: &File, offset: u64, out: &mut [u8]) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(file, out, offset)
    }

    /// Each call says where it reads, so threads that share the handle do not disturb each other, although it has a position that
    /// moves.
    #[cfg(windows)]
    fn read_exact_at(file: &File, mut offset: u64, mut out: &mut [u8]) -> io::Result<()> {
        while !out.is_empty() {
            match std::os::windows::fs::FileExt::seek_read(file, out, offset) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    out = &mut out[count..];
                    offset += count as u64;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
