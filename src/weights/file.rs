//! A safetensors file that was checked.

use std::collections::BTreeMap;
use std::fmt;

use super::foreign;
use super::header::Header;
use super::load::WeightSource;
use super::mapping::FileBytes;
use super::stored::StoredTensor;
use crate::error::{Error, Result};
use crate::error::{FoundPrefix, WeightsMismatch};

/// A safetensors file: names, types, shapes, bytes. Mapped into memory or owned.
pub struct WeightFile {
    /// What errors call it.
    label: String,
    bytes: FileBytes,
    header: Header,
}

impl WeightFile {
    /// Maps the file and checks its header; the data is read when it is used.
    ///
    /// The file must not be changed or shortened while this value lives: what is read then may be anything, and a part that
    /// was cut off ends the program. To put a new file in its place (as [`WeightWriter::save`](super::WeightWriter::save)
    /// does) is fine, though Windows refuses it while the old one is mapped.
    ///
    /// # Errors
    /// [`Error::File`] when it cannot be opened or mapped, or is no regular file; [`Error::InvalidWeightFile`] when it is not
    /// a whole, valid safetensors file.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn open(path: impl AsRef<std::path::Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = FileBytes::map(path).map_err(|error| Error::File {
            path: path.to_owned(),
            action: "opened",
            reason: error.to_string(),
        })?;
        Self::check(path.display().to_string(), bytes)
    }

    /// The same with bytes from elsewhere.
    ///
    /// # Errors
    /// [`Error::InvalidWeightFile`].
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self> {
        Self::check("given bytes".to_owned(), FileBytes::Owned(bytes))
    }

    fn check(label: String, bytes: FileBytes) -> Result<Self> {
        match Header::parse(&bytes) {
            Ok(header) => Ok(Self {
                label,
                bytes,
                header,
            }),
            Err(reason) => Err(Error::InvalidWeightFile {
                file: label,
                reason: foreign::recognise(&bytes).unwrap_or(reason),
            }),
        }
    }

    /// Names of all tensors, in the order of their bytes.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.header.entries.iter().map(|entry| entry.name.as_str())
    }

    /// All tensors, in the order of their bytes.
    pub fn tensors(&self) -> impl Iterator<Item = StoredTensor<'_>> {
        self.header.entries.iter().map(|entry| StoredTensor {
            entry,
            bytes: &self.bytes[entry.range.clone()],
        })
    }

    /// The strings that the file has beside its tensors.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.header.metadata
    }

    /// The tensor called `name`.
    pub fn get(&self, name: &str) -> Option<StoredTensor<'_>> {
        let entry = self.header.find(name)?;
        Some(StoredTensor {
            entry,
            bytes: &self.bytes[entry.range.clone()],
        })
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
    /// [`Error::WeightsMismatch`] when there is no such tensor, or there are several, with their prefixes.
    pub fn part_with(&self, name: &str) -> Result<WeightSource<'_>> {
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
        Err(Error::WeightsMismatch(Box::new(WeightsMismatch {
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
            .field("bytes", &self.bytes.len())
            .field("tensors", &self.header.entries.len())
            .finish_non_exhaustive()
    }
}
