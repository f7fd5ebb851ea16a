//! The bytes of a weight file: in memory, or on a disk, from where they are read when they are needed.

use std::borrow::Cow;

use crate::error::WeightsError;

#[cfg(not(target_arch = "wasm32"))]
pub(super) use disk::DiskFile;

/// The bytes of a weight file.
pub(super) enum Storage {
    Memory(Vec<u8>),
    #[cfg(not(target_arch = "wasm32"))]
    Disk(DiskFile),
}

/// Why bytes that should be there could not be read.
#[derive(Debug)]
pub(super) enum ReadError {
    /// The file has changed since it was opened. It has this many bytes now.
    Changed(u64),
    /// The operating system refused; this is its message.
    #[cfg(not(target_arch = "wasm32"))]
    Refused(String),
}

impl Storage {
    /// Number of bytes; of a file on disk, when it was opened.
    pub fn len(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            #[cfg(not(target_arch = "wasm32"))]
            Self::Disk(file) => file.len(),
        }
    }

    /// `bytes` bytes from `offset` on.
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

    /// Fails with [`ReadError::Changed`] if the file has changed since it was opened, so that earlier reads cannot be trusted.
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
    /// Turns this into the error of reading `part` of the file called `file`, which had `expected_bytes` when it was opened.
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

    /// An open file, with its state when it was opened.
    ///
    /// The file is read, not mapped to memory. If another program cut off a mapped file, this program would crash; if it changed
    /// the file, slices would change, which Rust does not allow.
    pub struct DiskFile {
        file: File,
        opened: State,
    }

    /// The state of a file, which shows whether it was written to. (The time of the last status change would show more changes, but
    /// also harmless ones: the file was renamed, linked, or replaced by a new one.)
    #[derive(Clone, Copy, PartialEq, Eq)]
    struct State {
        len: u64,
        /// Time of the last modification; `None` if the file system does not keep it.
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
            // Also checked before opening, because opening a pipe would wait for its other end.
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
                // The file was longer when it was opened.
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
            false => Err(io::Error::new(
                ErrorKind::InvalidInput,
                "it is no regular file",
            )),
        }
    }

    #[cfg(unix)]
    fn read_exact_at(file: &File, offset: u64, out: &mut [u8]) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(file, out, offset)
    }

    /// Each call gives its offset. So threads that share the handle do not disturb each other, although each call moves the
    /// handle's position.
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
