//! The header of a file to be written.

use std::collections::BTreeMap;

use serde::ser::{Serialize, SerializeMap, Serializer};

use super::header::{LENGTH_BYTES, MAX_JSON_BYTES, METADATA_KEY};
use crate::error::{StoredType, WeightsError};

/// A header to be written. All tensors have the same type and lie one after the other.
pub(super) struct NewHeader<'a> {
    pub metadata: &'a BTreeMap<String, String>,
    pub stored_type: StoredType,
    /// Name and shape of each tensor, and the range of its bytes in the data.
    pub tensors: Vec<(String, &'a [usize], [u64; 2])>,
}

#[derive(serde::Serialize)]
struct NewTensor<'a> {
    dtype: &'static str,
    shape: &'a [usize],
    data_offsets: [u64; 2],
}

impl Serialize for NewHeader<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if !self.metadata.is_empty() {
            map.serialize_entry(METADATA_KEY, self.metadata)?;
        }
        for (name, shape, data_offsets) in &self.tensors {
            let tensor = NewTensor {
                dtype: self.stored_type.name(),
                shape,
                data_offsets: *data_offsets,
            };
            map.serialize_entry(name, &tensor)?;
        }
        map.end()
    }
}

impl NewHeader<'_> {
    /// The bytes of the file before the data, padded so that the data begins at a multiple of 8.
    ///
    /// # Errors
    /// [`WeightsError::CannotSave`] when they are more than readers accept.
    pub fn to_bytes(&self) -> Result<Vec<u8>, WeightsError> {
        let refused = |given: String, need| WeightsError::CannotSave {
            what: "header of a file to be saved",
            given,
            need,
        };
        let mut json = serde_json::to_vec(self)
            .map_err(|error| refused(error.to_string(), "possible to write as JSON"))?;
        json.resize(json.len().next_multiple_of(LENGTH_BYTES), b' ');
        let length = json.len() as u64;
        if length > MAX_JSON_BYTES {
            let need = "at most 100000000 bytes, or nothing could read it: shorten the metadata";
            return Err(refused(format!("{length} bytes"), need));
        }
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.append(&mut json);
        Ok(bytes)
    }
}
