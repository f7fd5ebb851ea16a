//! Tokens in files.

use std::io::{self, ErrorKind};
use std::ops::Range;
use std::path::{Path, PathBuf};

use fs4::FileExt;

use super::tokens::{TokenSink, TokenSource};
use crate::device::DType;
use crate::disk::DiskFile;
use crate::error::{Error, Result};

/// Tokens in a file: elements of one type, one after the other in the order of the machine, from some byte on. That is how .npy and
/// safetensors files have them, and files without any header.
///
/// ```
/// use dilated_attention::DType;
/// use dilated_attention::out_of_core::{TokenFile, TokenSource, TokenSink};
/// let path = std::env::temp_dir().join(format!("tokens-{}", std::process::id()));
/// // Room for 100 tokens of 16 elements behind 8 bytes.
/// let mut file = TokenFile::create(&path, b"headers!", DType::F32, 1600)?;
/// file.write(50..51, bytemuck::cast_slice(&[0.5f32; 16])).expect("is written");
/// drop(file);
/// let file = TokenFile::open(&path, 8, DType::F32, 1600)?;
/// let mut row = [0f32; 16];
/// file.read(50..51, bytemuck::cast_slice_mut(&mut row)).expect("is read");
/// assert_eq!(row, [0.5; 16]);
/// # std::fs::remove_file(path).expect("is removed");
/// # Ok::<(), dilated_attention::Error>(())
/// ```
#[derive(Debug)]
pub struct TokenFile {
    path: PathBuf,
    file: DiskFile,
    first_byte: u64,
    dtype: DType,
    num_elements: u64,
    /// Whether the file is written here, so that it changes.
    is_written: bool,
}

impl TokenFile {
    /// Opens the regular file at `path`, to read `num_elements` elements that begin at byte `first_byte`. They are read when they are
    /// needed. If the file is changed meanwhile, reads fail.
    ///
    /// # Errors
    /// [`Error::TokenFile`] when the file cannot be opened or ends before the elements do.
    pub fn open(
        path: impl AsRef<Path>,
        first_byte: u64,
        dtype: DType,
        num_elements: u64,
    ) -> Result<Self> {
        let path = path.as_ref();
        let opened = DiskFile::open(path);
        Self::of(path, opened, "opened", first_byte, dtype, num_elements)
    }

    /// As [`open`](Self::open), to go on writing.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_to_write(
        path: impl AsRef<Path>,
        first_byte: u64,
        dtype: DType,
        num_elements: u64,
    ) -> Result<Self> {
        let path = path.as_ref();
        let opened = DiskFile::open_to_write(path);
        let file = Self::of(
            path,
            opened,
            "opened to be written",
            first_byte,
            dtype,
            num_elements,
        )?;
        Ok(Self {
            is_written: true,
            ..file
        })
    }

    /// Makes a file at `path`, where there must be none: `header`, and then room for `num_elements` elements, all 0. The disk's space
    /// is reserved.
    ///
    /// # Errors
    /// [`Error::DiskFull`] when the disk has no room; [`Error::TokenFile`] when the file cannot be made, or exists.
    pub fn create(
        path: impl AsRef<Path>,
        header: &[u8],
        dtype: DType,
        num_elements: u64,
    ) -> Result<Self> {
        let path = path.as_ref();
        let first_byte = header.len() as u64;
        let bytes = end_of(first_byte, dtype, num_elements);
        Ok(Self {
            path: path.to_owned(),
            file: create(path, header, bytes)?,
            first_byte,
            dtype,
            num_elements,
            is_written: true,
        })
    }

    fn of(
        path: &Path,
        opened: io::Result<DiskFile>,
        action: &'static str,
        first_byte: u64,
        dtype: DType,
        num_elements: u64,
    ) -> Result<Self> {
        let file = opened.map_err(|error| failed(path, action, &error))?;
        let bytes = end_of(first_byte, dtype, num_elements);
        if file.len() < bytes {
            let reason = format!(
                "it has {} bytes, where {num_elements} elements of type {dtype} from byte {first_byte} on need {bytes}",
                file.len()
            );
            return Err(failed(path, action, &io::Error::other(reason)));
        }
        Ok(Self {
            path: path.to_owned(),
            file,
            first_byte,
            dtype,
            num_elements,
            is_written: false,
        })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// First byte of `tokens`, of which all have as many bytes as `rows` is long.
    fn place(&self, tokens: &Range<usize>, rows: usize) -> io::Result<u64> {
        let row_bytes = (rows.checked_div(tokens.len()).unwrap_or(0)) as u64;
        let bytes = self.num_elements * self.dtype.bytes();
        match (tokens.end as u64).checked_mul(row_bytes) {
            Some(end) if end <= bytes => Ok(self.first_byte + tokens.start as u64 * row_bytes),
            _ => Err(io::Error::new(
                ErrorKind::UnexpectedEof,
                format!("there are {bytes} bytes, and tokens {tokens:?} end behind them"),
            )),
        }
    }
}

/// The byte behind the elements. Where that overflows, no file is so long.
fn end_of(first_byte: u64, dtype: DType, num_elements: u64) -> u64 {
    first_byte.saturating_add(num_elements.saturating_mul(dtype.bytes()))
}

pub(super) fn failed(path: &Path, action: &'static str, error: &io::Error) -> Error {
    Error::TokenFile {
        path: path.to_owned(),
        action,
        reason: match error.kind() {
            ErrorKind::AlreadyExists => "there is one: remove it, or name another".to_owned(),
            _ => error.to_string(),
        },
    }
}

/// Makes a file of `bytes` bytes at `path`, where there must be none. It begins with `header`; all else is 0.
pub(super) fn create(path: &Path, header: &[u8], bytes: u64) -> Result<DiskFile> {
    let created = DiskFile::create(path);
    let file = created.map_err(|error| failed(path, "made", &error))?;
    if let Err(error) = fill_new(path, &file, header, bytes) {
        drop(file);
        // A failure leaves a file without content.
        _ = std::fs::remove_file(path);
        return Err(error);
    }
    Ok(file)
}

/// Makes a file `bytes` long, the first of which are `header` and all others 0.
pub(super) fn fill_new(path: &Path, file: &DiskFile, header: &[u8], bytes: u64) -> Result<()> {
    let emptied = file.file().set_len(0);
    let written = emptied.and_then(|()| file.write(0, header));
    written.map_err(|error| failed(path, "written", &error))?;
    reserve(path, file, bytes)
}

/// Makes a file `bytes` long.
fn reserve(path: &Path, file: &DiskFile, bytes: u64) -> Result<()> {
    let available = || {
        let folder = path.parent();
        let folder = folder.filter(|folder| !folder.as_os_str().is_empty());
        fs4::available_space(folder.unwrap_or(Path::new(".")))
    };
    let full = |available_bytes| Error::DiskFull {
        path: path.to_owned(),
        requested_bytes: bytes,
        available_bytes,
    };
    // Asked first: some file systems write zeros to reserve, and would fail only once the disk is full.
    match available() {
        Ok(available_bytes) if available_bytes < bytes => return Err(full(available_bytes)),
        _ => {}
    }
    let reserved = FileExt::allocate(file.file(), bytes);
    match reserved {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::StorageFull => {
            return Err(full(available().unwrap_or(0)));
        }
        // Not every file system can. Then a disk that others fill meanwhile is an error of a later write.
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::Unsupported | ErrorKind::InvalidInput
            ) => {}
        Err(error) => return Err(failed(path, "made", &error)),
    }
    let sized = file.file().set_len(bytes);
    sized.map_err(|error| failed(path, "made", &error))
}

impl TokenSource for TokenFile {
    fn dtype(&self) -> DType {
        self.dtype
    }

    fn num_elements(&self) -> Option<u64> {
        Some(self.num_elements)
    }

    fn read(&self, tokens: Range<usize>, rows: &mut [u8]) -> io::Result<()> {
        let first = self.place(&tokens, rows.len())?;
        let read = self.file.read(first, rows);
        match self.file.changed()? {
            Some(bytes) if !self.is_written => Err(io::Error::other(format!(
                "{} has changed since it was opened: it has {bytes} bytes now, {} then",
                self.path.display(),
                self.file.len()
            ))),
            _ => read,
        }
    }

    fn identity(&self) -> io::Result<String> {
        self.file.identity()
    }
}

impl TokenSink for TokenFile {
    fn dtype(&self) -> DType {
        self.dtype
    }

    fn num_elements(&self) -> Option<u64> {
        Some(self.num_elements)
    }

    fn write(&mut self, tokens: Range<usize>, rows: &[u8]) -> io::Result<()> {
        let first = self.place(&tokens, rows.len())?;
        self.file.write(first, rows)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.file().sync_data()
    }

    fn read_back(&mut self, tokens: Range<usize>, rows: &mut [u8]) -> io::Result<bool> {
        let first = self.place(&tokens, rows.len())?;
        self.file.read(first, rows)?;
        Ok(true)
    }
}
