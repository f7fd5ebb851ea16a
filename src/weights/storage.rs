//! The bytes of a weight file: in memory, or on a disk, from where they are read when they are needed.

use std::borrow::Cow;

#[cfg(not(target_arch = "wasm32"))]
use crate::disk::DiskFile;
use crate::error::WeightsError;

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
                read(file, offset, &mut out)?;
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
            Self::Disk(file) => read(file, offset, out),
        }
    }

    /// Fails with [`ReadError::Changed`] if the file has changed since it was opened, so that earlier reads cannot be trusted.
    pub fn check_unchanged(&self) -> Result<(), ReadError> {
        match self {
            Self::Memory(_) => Ok(()),
            #[cfg(not(target_arch = "wasm32"))]
            Self::Disk(file) => check_unchanged(file),
        }
    }
}

#[cfg(not(target_arch = "wasm32"))]
fn read(file: &DiskFile, offset: u64, out: &mut [u8]) -> Result<(), ReadError> {
    let Err(error) = file.read(offset, out) else {
        return Ok(());
    };
    // The file was longer when it was opened.
    if error.kind() == std::io::ErrorKind::UnexpectedEof {
        check_unchanged(file)?;
    }
    Err(ReadError::Refused(error.to_string()))
}

#[cfg(not(target_arch = "wasm32"))]
fn check_unchanged(file: &DiskFile) -> Result<(), ReadError> {
    match file.changed() {
        Ok(None) => Ok(()),
        Ok(Some(bytes)) => Err(ReadError::Changed(bytes)),
        Err(error) => Err(ReadError::Refused(error.to_string())),
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
