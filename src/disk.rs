//! Files on a disk, read and written at given places.
//!
//! They are not mapped to memory. If another program cut off a mapped file, this program would crash; if it changed the file, slices
//! would change, which Rust does not allow.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{Error, ErrorKind, Result};
use std::path::Path;
use std::time::SystemTime;

/// An open file, with its state when it was opened.
#[derive(Debug)]
pub(crate) struct DiskFile {
    file: File,
    opened: State,
}

/// The state of a file, which shows whether it was written to. (The time of the last status change would show more changes, but
/// also harmless ones: the file was renamed, linked, or replaced by a new one.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    /// Opens the regular file at `path` to be read.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_with(OpenOptions::new().read(true), path)
    }

    /// Opens the regular file at `path` to be read and written.
    pub fn open_to_write(path: &Path) -> Result<Self> {
        Self::open_with(OpenOptions::new().read(true).write(true), path)
    }

    fn open_with(options: &OpenOptions, path: &Path) -> Result<Self> {
        // Also checked before opening, because opening a pipe would wait for its other end.
        regular(std::fs::metadata(path)?)?;
        let file = options.open(path)?;
        let opened = regular(file.metadata()?)?.into();
        Ok(Self { file, opened })
    }

    /// Makes a file at `path`, where there must be none, to be read and written.
    pub fn create(path: &Path) -> Result<Self> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create_new(true).open(path)?;
        let opened = file.metadata()?.into();
        Ok(Self { file, opened })
    }

    /// Number of bytes when the file was opened.
    pub fn len(&self) -> u64 {
        self.opened.len
    }

    /// What tells the file from others and from itself after a change: its length, and when it was modified last.
    pub fn identity(&self) -> Result<String> {
        let now = State::from(self.file.metadata()?);
        let since = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).ok();
        Ok(match now.modified.and_then(since) {
            Some(time) => format!(
                "{} bytes, modified {}.{:09} s after 1970",
                now.len,
                time.as_secs(),
                time.subsec_nanos()
            ),
            None => format!("{} bytes", now.len),
        })
    }

    /// The file, for what is neither read nor write.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Fills `out` with the bytes from `offset` on.
    pub fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        read_exact_at(&self.file, offset, out)
    }

    /// Writes `bytes` from `offset` on.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        write_all_at(&self.file, offset, bytes)
    }

    /// The number of bytes that the file has now, if it has changed since it was opened.
    pub fn changed(&self) -> Result<Option<u64>> {
        let now = State::from(self.file.metadata()?);
        Ok((now != self.opened).then_some(now.len))
    }
}

fn regular(metadata: Metadata) -> Result<Metadata> {
    match metadata.is_file() {
        true => Ok(metadata),
        false => Err(Error::new(ErrorKind::InvalidInput, "it is no regular file")),
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, offset: u64, out: &mut [u8]) -> Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, out, offset)
}

#[cfg(unix)]
fn write_all_at(file: &File, offset: u64, bytes: &[u8]) -> Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
}

/// Each call gives its offset. So threads that share the handle do not disturb each other, although each call moves the handle's
/// position.
#[cfg(windows)]
fn read_exact_at(file: &File, mut offset: u64, mut out: &mut [u8]) -> Result<()> {
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

#[cfg(windows)]
fn write_all_at(file: &File, mut offset: u64, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        match std::os::windows::fs::FileExt::seek_write(file, bytes, offset) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(count) => {
                bytes = &bytes[count..];
                offset += count as u64;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
