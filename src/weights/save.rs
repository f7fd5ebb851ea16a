//! From parameters on the device to a file.

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

/// Elements that one download reads.
const PIECE_ELEMENTS: u64 = 4 << 20;

/// Elements and downloads of one submission: what the host holds of a model while it is saved.
const GROUP_ELEMENTS: u64 = 16 << 20;
const GROUP_DOWNLOADS: usize = 256;

/// Elements rounded at a time.
const ROUNDED_ELEMENTS: usize = 64 << 10;

/// What to save: parameters, each set under a prefix, and strings beside them.
#[derive(Clone, Debug)]
#[must_use = "nothing is saved before `save` or `to_bytes`"]
pub struct WeightWriter<'a> {
    parts: Vec<(String, &'a Parameters)>,
    metadata: BTreeMap<String, String>,
    /// Under keys after [`OWN_METADATA`].
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
    /// A file with nothing in it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds parameters, in the order of their list, their names after `prefix`.
    pub fn with_part(mut self, prefix: impl Into<String>, parameters: &'a Parameters) -> Self {
        self.parts.push((prefix.into(), parameters));
        self
    }

    /// Adds a string; a later one of the same key replaces it. Keys that begin with [`OWN_METADATA`] are refused when the file
    /// is written.
    pub fn with_metadata(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.metadata.insert(key.into(), value.into());
        self
    }

    /// Adds a string of the crate's own, which no key of the caller's can replace.
    #[cfg(all(feature = "training", not(target_arch = "wasm32")))]
    pub(crate) fn own_metadata(mut self, key: &'static str, value: impl Into<String>) -> Self {
        self.own_metadata.insert(key, value.into());
        self
    }

    /// Stores all elements in this type: [`StoredType::F32`], which is the default and exact, or half the bytes with rounding.
    pub fn with_stored_type(mut self, stored_type: StoredType) -> Self {
        self.stored_type = stored_type;
        self
    }

    /// Writes the file, as a whole or not at all: to a new file beside it, which takes its place when all is on the disk. A
    /// program that is killed meanwhile leaves that one behind, called `.dilated-attention-*.partial`. A link is followed; the
    /// permissions of a file that is replaced are kept. Blocks until the parameters were read.
    ///
    /// # Errors
    /// [`WeightsError::File`], also when a file that is read-only would be replaced; and as [`to_bytes`](Self::to_bytes). The old
    /// file is as it was then.
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

    /// The bytes of the file, for who has no file system.
    ///
    /// # Errors
    /// [`WeightsError::CannotSave`] for a name that is there twice or reserved, a key of metadata that is reserved, a type that
    /// parameters cannot have, or more names and metadata than readers accept;
    /// [`WeightsError::ValueTooLarge`] for a value that the type cannot hold; those of downloading.
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

    /// All tensors in order, large ones in pieces, each with the name of its parameter.
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
                let piece = tensor.part(&[count as usize], first * 4);
                (spec.name.as_str(), piece)
            })
        })
    }
}
