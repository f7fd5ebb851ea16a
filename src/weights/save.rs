//! Saves parameters from the device to a file.

use std::collections::{BTreeMap, HashSet};
use std::io::{self, Write};

use super::OWN_METADATA;
use super::header::METADATA_KEY;
use super::new_header::NewHeader;
use crate::context::Context;
use crate::error::{Result, StoredType, WeightsError};
use crate::nn::Parameters;
use crate::readback::Download;
use crate::tensor::Tensor;

/// Most elements of a download.
const PIECE_ELEMENTS: u64 = 4 << 20;

/// Most elements, and most downloads, of a submission. They bound the memory that saving takes on the host.
const GROUP_ELEMENTS: u64 = 16 << 20;
const GROUP_DOWNLOADS: usize = 256;

/// Number of elements that are rounded at a time.
const ROUNDED_ELEMENTS: usize = 64 << 10;

/// Writes a safetensors file: sets of parameters, each under a prefix, and metadata.
#[derive(Clone, Debug)]
#[must_use = "nothing is saved before `save` or `to_bytes`"]
pub struct WeightWriter<'a> {
    parts: Vec<(String, &'a Parameters)>,
    metadata: BTreeMap<String, String>,
    /// The crate's own metadata; its keys come after [`OWN_METADATA`].
    own_metadata: BTreeMap<&'static str, String>,
    stored_type: StoredType,
}

impl Default for WeightWriter<'_> {
    fn default() -> Self {
        Self {
            parts: Vec::new(),
            metadata: BTreeMap::new(),
            own_metadata: BTreeMap::new(),
            stored_type: StoredType::F32,
        }
    }
}

impl<'a> WeightWriter<'a> {
    /// A file without parameters and metadata.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a set of parameters in the order of their list, with `prefix` before their names.
    pub fn with_part(mut self, prefix: impl Into<String>, parameters: &'a Parameters) -> Self {
        self.parts.push((prefix.into(), parameters));
        self
    }

    /// Adds a metadata string. A later one with the same key replaces it. Keys that begin with [`OWN_METADATA`] are refused when
    /// the file is written.
    pub fn with_metadata(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.metadata.insert(key.into(), value.into());
        self
    }

    /// Adds a metadata string under a key that is reserved for the crate.
    #[cfg(all(feature = "training", not(target_arch = "wasm32")))]
    pub(crate) fn own_metadata(mut self, key: &'static str, value: impl Into<String>) -> Self {
        self.own_metadata.insert(key, value.into());
        self
    }

    /// Sets the type in which all elements are stored: [`StoredType::F32`], the default, which is exact; or [`StoredType::F16`] or
    /// [`StoredType::Bf16`], which take half the bytes and round.
    pub fn with_stored_type(mut self, stored_type: StoredType) -> Self {
        self.stored_type = stored_type;
        self
    }

    /// Writes the file, as a whole or not at all. The data goes to a new file in the same folder, which replaces the old file once
    /// it is complete on the disk. If the program is killed meanwhile, the new file remains, with the name
    /// `.dilated-attention-*.partial`. If `path` is a link, its target is replaced. The permissions of a replaced file are kept.
    /// Blocks until the parameters are read.
    ///
    /// # Errors
    /// [`WeightsError::File`], also when the file to be replaced is read-only; and as [`to_bytes`](Self::to_bytes). After an error
    /// the old file is unchanged.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn save(&self, context: &Context, path: impl AsRef<std::path::Path>) -> Result<()> {
        let path = path.as_ref();
        let failed = |error: io::Error| WeightsError::File {
            path: path.to_owned(),
            action: "saved",
            reason: error.to_string(),
        };
        let header = self.header()?;
        let replacement = crate::replacement::Replacement::begin(path).map_err(failed)?;
        let mut out = io::BufWriter::with_capacity(1 << 20, &replacement.file);
        pollster::block_on(self.write(context, &header, &mut out, &failed))?;
        out.flush().map_err(failed)?;
        drop(out);
        Ok(replacement.commit().map_err(failed)?)
    }

    /// The bytes of the file, for programs without a file system.
    ///
    /// # Errors
    /// [`WeightsError::CannotSave`] for a name that occurs twice or is reserved, a metadata key that is reserved, a type that
    /// parameters cannot have, or more names and metadata than readers accept; [`WeightsError::ValueTooLarge`] for a value too
    /// large for the type; the errors of downloading.
    pub async fn to_bytes(&self, context: &Context) -> Result<Vec<u8>> {
        let header = self.header()?;
        let mut bytes = Vec::new();
        // Writing to a vector cannot fail.
        let failed = |error: io::Error| WeightsError::InvalidFile {
            file: "bytes to be saved".to_owned(),
            reason: error.to_string(),
        };
        self.write(context, &header, &mut bytes, &failed).await?;
        Ok(bytes)
    }

    fn header(&self) -> Result<Vec<u8>, WeightsError> {
        if !self.stored_type.is_accepted() {
            return Err(WeightsError::CannotSave {
                what: "type to store parameters in",
                given: self.stored_type.to_string(),
                need: "F32, F16 or BF16",
            });
        }
        let mut metadata = self.metadata.clone();
        if let Some(key) = metadata.keys().find(|key| key.starts_with(OWN_METADATA)) {
            return Err(WeightsError::CannotSave {
                what: "key of metadata to be saved",
                given: key.clone(),
                need: "another beginning than dilated_attention., which is the crate's own",
            });
        }
        let own = self.own_metadata.iter();
        metadata.extend(own.map(|(key, value)| (format!("{OWN_METADATA}{key}"), value.clone())));
        let mut names = HashSet::new();
        let mut tensors = Vec::new();
        let mut end = 0u64;
        for (prefix, parameters) in &self.parts {
            for (spec, tensor) in parameters.iter() {
                let name = format!("{prefix}{}", spec.name);
                if name == METADATA_KEY || !names.insert(name.clone()) {
                    return Err(WeightsError::CannotSave {
                        what: "name of a tensor to be saved",
                        given: name,
                        need: "another than all before it and than __metadata__",
                    });
                }
                let begin = end;
                end += tensor.num_elements() * (self.stored_type.bits() / 8) as u64;
                tensors.push((name, spec.shape.as_slice(), [begin, end]));
            }
        }
        let header = NewHeader {
            metadata: &metadata,
            stored_type: self.stored_type,
            tensors,
        };
        header.to_bytes()
    }

    async fn write(
        &self,
        context: &Context,
        header: &[u8],
        out: &mut impl Write,
        failed: &impl Fn(io::Error) -> WeightsError,
    ) -> Result<()> {
        out.write_all(header).map_err(failed)?;
        let mut rest = self.pieces().peekable();
        let mut rounded = Vec::new();
        while rest.peek().is_some() {
            let mut recorder = context.recorder("save weights");
            let mut group: Vec<(&str, Download<f32>)> = Vec::new();
            let mut elements = 0;
            while let Some((name, piece)) = rest.next_if(|(_, piece)| {
                let fits = elements + piece.num_elements() <= GROUP_ELEMENTS;
                group.is_empty() || fits && group.len() < GROUP_DOWNLOADS
            }) {
                elements += piece.num_elements();
                group.push((name, recorder.download(&piece)?));
            }
            recorder.submit()?;
            for (name, download) in group {
                for values in download.await?.chunks(ROUNDED_ELEMENTS) {
                    rounded.clear();
                    if let Some(value) = self.stored_type.narrow(values, &mut rounded) {
                        let name = name.to_owned();
                        let stored_type = self.stored_type;
                        return Err(WeightsError::ValueTooLarge {
                            name,
                            value,
                            stored_type,
                        }
                        .into());
                    }
                    out.write_all(&rounded).map_err(failed)?;
                }
            }
        }
        Ok(())
    }

    /// All tensors in order, each with the name of its parameter. Large tensors are cut into pieces.
    fn pieces(&self) -> impl Iterator<Item = (&'a str, Tensor)> {
        let tensors = self
            .parts
            .iter()
            .flat_map(|(_, parameters)| parameters.iter());
        tensors.flat_map(|(spec, tensor)| {
            let num_elements = tensor.num_elements();
            let firsts = (0..num_elements).step_by(PIECE_ELEMENTS as usize);
            firsts.map(move |first| {
                let count = PIECE_ELEMENTS.min(num_elements - first);
                let piece = tensor.view(&[count as usize], first * 4);
                (spec.name.as_str(), piece)
            })
        })
    }
}
