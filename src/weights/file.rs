//! A safetensors file that was checked.

use std::collections::BTreeMap;
use std::fmt;

use super::foreign;
use super::header::{Header, LENGTH_BYTES};
use super::load::WeightSource;
#[cfg(not(target_arch = "wasm32"))]
use super::storage::DiskFile;
use super::storage::{ReadError, Storage};
use super::stored::StoredTensor;
use crate::error::{FoundPrefix, WeightsError, WeightsMismatch};

/// A safetensors file: names, types, shapes, and the elements, which stay on the disk until they are used, or in memory.
pub struct WeightFile {
    /// What errors call it.
    label: String,
    storage: Storage,
    header: Header,
}

impl WeightFile {
    /// Opens the file, reads its header and checks it; elements are read when they are used, in pieces of bounded size.
    ///
    /// Others may do with the file what they want: where it was written to or cut off since, reading from it is
    /// [`WeightsError::FileChanged`] (as far as its size and the time of its last change tell). A new file in its place, as
    /// [`WeightWriter::save`](super::WeightWriter::save) puts there, is another one; this value goes on with the old.
    ///
    /// # Errors
    /// [`WeightsError::File`] when it cannot be opened or is no regular file; [`WeightsError::InvalidFile`] when it is not a
    /// whole, valid safetensors file; those of reading.
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

    /// The same with bytes from elsewhere.
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
        // What was read is of one file, not of two.
        let failed = |error: ReadError| error.told(&label, "its header".to_owned(), 0, file_bytes);
        storage.check_unchanged().map_err(failed)?;
        Ok(Self {
            label,
            storage,
            header,
        })
    }

    /// Names of all tensors, in the order of their bytes.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.header.entries.iter().map(|entry| entry.name.as_str())
    }

    /// All tensors, in the order of their bytes.
    pub fn tensors(&self) -> impl Iterator<Item = StoredTensor<'_>> {
        let entries = self.header.entries.iter();
        entries.map(|entry| StoredTensor { file: self, entry })
    }

    /// The strings that the file has beside its tensors.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.header.metadata
    }

    /// The tensor called `name`.
    pub fn get(&self, name: &str) -> Option<StoredTensor<'_>> {
        let entry = self.header.find(name)?;
        Some(StoredTensor { file: self, entry })
    }

    /// All tensors, to load from.
    pub fn all(&self) -> WeightSource<'_> {
        self.part("")
    }

    /// The tensors whose names begin with `prefix`, named without it.
    pub fn part(&self, prefix: impl Into<String>) -> WeightSource<'_> {
        WeightSource::new(self, prefix.into())
    }

    /// The part that has a tensor for the parameter called `name`, under whatever prefix: a checkpoint that was saved from inside
    /// a wrapper has one (`module.`, `_orig_mod.`), which [`WeightSource::prefix`] then tells.
    ///
    /// # Errors
    /// [`WeightsError::Mismatch`] when there is no such tensor, or there are several, with their prefixes.
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
