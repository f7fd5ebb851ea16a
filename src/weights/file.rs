//! Safetensors files for reading.

use std::collections::BTreeMap;
use std::fmt;

use super::foreign;
use super::header::{Header, LENGTH_BYTES};
use super::load::WeightSource;
use super::storage::{ReadError, Storage};
use super::stored::StoredTensor;
#[cfg(not(target_arch = "wasm32"))]
use crate::disk::DiskFile;
use crate::error::{FoundPrefix, WeightsError, WeightsMismatch};

/// A safetensors file whose header was checked: names, types and shapes of tensors. The elements of a file on disk are read when
/// they are used.
pub struct WeightFile {
    /// Name of the file in errors.
    label: String,
    storage: Storage,
    header: Header,
}

impl WeightFile {
    /// Opens a file, and reads and checks its header. Elements are read when they are used, in pieces of bounded size.
    ///
    /// If the file is written to or cut off later, reading from it fails with [`WeightsError::FileChanged`], as far as its size and
    /// modification time show the change. It may be replaced by a new file, as [`WeightWriter::save`](super::WeightWriter::save)
    /// does; this value goes on reading the old one.
    ///
    /// # Errors
    /// [`WeightsError::File`] when it cannot be opened or is not a regular file; [`WeightsError::InvalidFile`] when it is not a
    /// complete, valid safetensors file; the errors of reading.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn open(path: impl AsRef<std::path::Path>) -> Result<Self, WeightsError> {
        let path = path.as_ref();
        let file = DiskFile::open(path).map_err(|error| WeightsError::File {
            path: path.to_owned(),
            action: "opened",
            reason: error.to_string(),
        })?;
        Self::check(path.display().to_string(), Storage::Disk(file))
    }

    /// Checks the bytes of a safetensors file in memory.
    ///
    /// # Errors
    /// [`WeightsError::InvalidFile`].
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, WeightsError> {
        Self::check("given bytes".to_owned(), Storage::Memory(bytes))
    }

    fn check(label: String, storage: Storage) -> Result<Self, WeightsError> {
        let file_bytes = storage.len();
        let read = |offset: u64, bytes: usize| {
            let failed =
                |error: ReadError| error.told(&label, "its header".to_owned(), offset, file_bytes);
            storage.get(offset, bytes).map_err(failed)
        };
        let head = read(0, file_bytes.min(foreign::LOOKED_AT as u64) as usize)?;
        let invalid = |reason: String| WeightsError::InvalidFile {
            file: label.clone(),
            reason: foreign::recognise(&head).unwrap_or(reason),
        };
        let json_bytes = Header::json_bytes(&head, file_bytes).map_err(invalid)?;
        let json = read(LENGTH_BYTES as u64, json_bytes)?;
        let header = Header::parse(&json, file_bytes).map_err(invalid)?;
        drop((json, head));
        // Makes sure that the file did not change while its header was read.
        let failed = |error: ReadError| error.told(&label, "its header".to_owned(), 0, file_bytes);
        storage.check_unchanged().map_err(failed)?;
        Ok(Self {
            label,
            storage,
            header,
        })
    }

    /// Names of all tensors, in the order in which their bytes lie in the file.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.header.entries.iter().map(|entry| entry.name.as_str())
    }

    /// All tensors, in the order in which their bytes lie in the file.
    pub fn tensors(&self) -> impl Iterator<Item = StoredTensor<'_>> {
        let entries = self.header.entries.iter();
        entries.map(|entry| StoredTensor { file: self, entry })
    }

    /// The metadata of the file: strings by key.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.header.metadata
    }

    /// The tensor called `name`.
    pub fn get(&self, name: &str) -> Option<StoredTensor<'_>> {
        let entry = self.header.find(name)?;
        Some(StoredTensor { file: self, entry })
    }

    /// A source with all tensors of the file.
    pub fn all(&self) -> WeightSource<'_> {
        self.part("")
    }

    /// A source with the tensors whose names begin with `prefix`, which is removed from their names.
    pub fn part(&self, prefix: impl Into<String>) -> WeightSource<'_> {
        WeightSource::new(self, prefix.into())
    }

    /// A source with the part of the file that has a tensor called `name`, after whatever prefix. Checkpoints that were saved from
    /// inside a wrapper have a prefix, such as `module.` or `_orig_mod.`. [`WeightSource::prefix`] returns it.
    ///
    /// # Errors
    /// [`WeightsError::Mismatch`] when there is no such tensor, or when there are several, with their prefixes.
    pub fn part_with(&self, name: &str) -> Result<WeightSource<'_>, WeightsError> {
        let prefixes = self.names().filter_map(|full| full.strip_suffix(name));
        let prefixes: Vec<_> = prefixes
            .filter(|prefix| prefix.is_empty() || prefix.ends_with('.'))
            .collect();
        if let &[prefix] = prefixes.as_slice() {
            return Ok(self.part(prefix));
        }
        let found = prefixes.iter().map(|prefix| FoundPrefix {
            prefix: (*prefix).to_owned(),
            found: 1,
            of: 1,
        });
        Err(WeightsError::Mismatch(Box::new(WeightsMismatch {
            file: self.label.clone(),
            missing: vec![name.to_owned()],
            unknown: self.names().map(str::to_owned).collect(),
            prefixes: found.collect(),
            ..Default::default()
        })))
    }

    pub(crate) fn label(&self) -> &str {
        &self.label
    }

    pub(super) fn storage(&self) -> &Storage {
        &self.storage
    }
}

impl<'a> From<&'a WeightFile> for WeightSource<'a> {
    /// [`WeightFile::all`].
    fn from(file: &'a WeightFile) -> Self {
        file.all()
    }
}

impl fmt::Debug for WeightFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WeightFile")
            .field("file", &self.label)
            .field("bytes", &self.storage.len())
            .field("tensors", &self.header.entries.len())
            .finish_non_exhaustive()
    }
}
