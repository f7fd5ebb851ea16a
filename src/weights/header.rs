//! The header of a safetensors file.
//!
//! ```text
//! length of the JSON, u64 little-endian | JSON: names, types, shapes, offsets; strings of metadata | data
//! ```
//! A file may come from anywhere. So this code allocates no more than a small multiple of the header's size, after comparing that
//! size with the file. It checks every number before using it: offsets lie in the data, tensors follow each other without gap or
//! overlap up to the last byte, and sizes agree with shapes and types.
//!
//! Tensors may begin at any byte, as in files of older writers, because nothing here needs alignment.
//!
//! The rules are those of the safetensors crate. It is not used, for these reasons: its version 0.8 adds the end of the data to the
//! length of the header unchecked, so that a hostile file causes a panic if overflow checks are on; it silently keeps one of two
//! tensors with the same name; it parses with a buffer many times as large as the header; and its writer sorts the tensors and
//! reads their bytes through an interface that cannot fail. Tests read files written by each with the other. serde_json parses the
//! JSON.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use serde::de::{Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::error::StoredType;

/// Bytes of the length before the JSON.
pub(super) const LENGTH_BYTES: usize = 8;

/// Largest JSON that readers of the format accept.
pub(super) const MAX_JSON_BYTES: u64 = 100_000_000;

/// Most dimensions of a tensor: what NumPy and PyTorch allow.
const MAX_RANK: usize = 64;

/// Key of the metadata. No tensor may have this name.
pub(super) const METADATA_KEY: &str = "__metadata__";

/// A tensor of the file.
pub(super) struct Entry {
    pub name: String,
    pub stored_type: StoredType,
    pub shape: Box<[usize]>,
    /// Byte range of the tensor in the file.
    pub range: Range<u64>,
}

/// A checked header.
pub(super) struct Header {
    /// Tensors, in the order in which their bytes lie in the file.
    pub entries: Vec<Entry>,
    /// Indices of entries, in the order of their names.
    by_name: Vec<usize>,
    pub metadata: BTreeMap<String, String>,
}

impl Header {
    /// Size of the JSON in bytes, of a file that begins with `head` and has `file_bytes` bytes. The JSON lies within the file. The
    /// error says what is wrong.
    pub fn json_bytes(head: &[u8], file_bytes: u64) -> Result<usize, String> {
        let Some(length) = head.first_chunk::<LENGTH_BYTES>() else {
            return Err(format!(
                "it has {file_bytes} bytes, but its header's length takes {LENGTH_BYTES}"
            ));
        };
        let length = u64::from_le_bytes(*length);
        if length > MAX_JSON_BYTES {
            return Err(format!(
                "its header would have {length} bytes; {MAX_JSON_BYTES} are allowed"
            ));
        }
        let here = file_bytes.saturating_sub(LENGTH_BYTES as u64);
        if length > here {
            return Err(format!(
                "its header has {length} bytes, of which {here} are here: it was cut off, download or copy it again"
            ));
        }
        // Fits in a usize: at most MAX_JSON_BYTES.
        Ok(length as usize)
    }

    /// Parses and checks the JSON of a file with `file_bytes` bytes. The error says what is wrong.
    pub fn parse(json: &[u8], file_bytes: u64) -> Result<Self, String> {
        let text = std::str::from_utf8(json)
            .map_err(|error| format!("its header is not UTF-8: {error}"))?;
        if !text.starts_with('{') {
            return Err("its header does not begin with '{'".to_owned());
        }
        let json: Json = serde_json::from_str(text)
            .map_err(|error| clipped(&format!("its header is not as it should be: {error}")))?;
        Self::check(json, (LENGTH_BYTES + text.len()) as u64, file_bytes)
    }

    fn check(json: Json, data_start: u64, file_bytes: u64) -> Result<Self, String> {
        let mut tensors = json.tensors;
        tensors.sort_by_key(|(_, tensor)| tensor.data_offsets);
        let mut entries = Vec::with_capacity(tensors.len());
        let mut end = data_start;
        // The end of the last tensor, according to the header.
        let need = tensors
            .iter()
            .flat_map(|(_, tensor)| tensor.data_offsets)
            .max();
        for (name, tensor) in tensors {
            let [first, last] = tensor.data_offsets;
            let in_file = |offset: u64| {
                let offset = offset.checked_add(data_start)?;
                (offset <= file_bytes).then_some(offset)
            };
            let told = |reason: String| Err(format!("tensor {} {reason}", quoted(&name)));
            let (Some(from), Some(to)) = (in_file(first), in_file(last)) else {
                let (need, data_bytes) = (need.unwrap_or(0), file_bytes - data_start);
                return told(format!(
                    "has bytes {first}..{last}, but of {need} bytes of data {data_bytes} are here: the file was cut off \
                     (download or copy it again), or lies"
                ));
            };
            if from != end {
                let what = if from < end {
                    "overlaps"
                } else {
                    "leaves a gap after"
                };
                return told(format!("{what} the one before it"));
            }
            if to < from {
                return told(format!("ends before it begins, bytes {first}..{last}"));
            }
            let Shape(shape) = tensor.shape;
            let Type(stored_type) = tensor.dtype;
            let bits = shape
                .iter()
                .try_fold(1usize, |count, dimension| count.checked_mul(*dimension))
                .and_then(|count| (count as u64).checked_mul(stored_type.bits() as u64));
            if bits.is_none_or(|bits| bits % 8 != 0 || bits / 8 != to - from) {
                let bytes = to - from;
                return told(format!(
                    "has shape {shape:?} of {stored_type}, which are not its {bytes} bytes"
                ));
            }
            end = to;
            entries.push(Entry {
                name,
                stored_type,
                shape: shape.into(),
                range: from..to,
            });
        }
        if end != file_bytes {
            let left = file_bytes - end;
            return Err(format!("{left} bytes at its end belong to no tensor"));
        }
        let mut by_name: Vec<usize> = (0..entries.len()).collect();
        by_name.sort_by(|a, b| entries[*a].name.cmp(&entries[*b].name));
        let twice = by_name.windows(2).find(|pair| {
            let [a, b] = [pair[0], pair[1]];
            entries[a].name == entries[b].name
        });
        if let Some(pair) = twice {
            let name = quoted(&entries[pair[0]].name);
            return Err(format!("two tensors are called {name}"));
        }
        Ok(Self {
            entries,
            by_name,
            metadata: json.metadata.unwrap_or_default(),
        })
    }

    /// The tensor called `name`.
    pub fn find(&self, name: &str) -> Option<&Entry> {
        let compare = |index: &usize| self.entries[*index].name.as_str().cmp(name);
        let position = self.by_name.binary_search_by(compare).ok()?;
        Some(&self.entries[self.by_name[position]])
    }
}

/// A name for messages: quoted, with control characters escaped, and not too long.
pub(super) fn quoted(name: &str) -> String {
    clipped(&format!("{name:?}"))
}

/// The first few hundred characters.
fn clipped(text: &str) -> String {
    const MOST: usize = 300;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

/// The parsed JSON before it is checked, duplicates included.
struct Json {
    metadata: Option<BTreeMap<String, String>>,
    tensors: Vec<(String, JsonTensor)>,
}

#[derive(Deserialize)]
struct JsonTensor {
    dtype: Type,
    shape: Shape,
    data_offsets: [u64; 2],
}

struct Type(StoredType);

struct Shape(Vec<usize>);

/// The metadata. A key that occurs twice is an error.
struct Pairs(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Json;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
                let mut json = Json {
                    metadata: None,
                    tensors: Vec::new(),
                };
                let mut seen = false;
                while let Some(name) = map.next_key::<String>()? {
                    if name != METADATA_KEY {
                        json.tensors.push((name, map.next_value()?));
                        continue;
                    }
                    if seen {
                        return Err(A::Error::custom("there is metadata twice"));
                    }
                    seen = true;
                    let pairs = map.next_value::<Option<Pairs>>()?;
                    json.metadata = pairs.map(|Pairs(pairs)| pairs);
                }
                Ok(json)
            }
        }
        deserializer.deserialize_map(Object)
    }
}

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Pairs;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                let mut pairs = BTreeMap::new();
                while let Some((key, value)) = map.next_entry::<String, String>()? {
                    let shown = quoted(&key);
                    if pairs.insert(key, value).is_some() {
                        let reason = format!("the metadata has {shown} twice");
                        return Err(A::Error::custom(reason));
                    }
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(Object)
    }
}

impl<'de> Deserialize<'de> for Type {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        let known = StoredType::from_name(&name);
        known.map(Self).ok_or_else(|| {
            let name = quoted(&name);
            D::Error::custom(format!("{name} is no type of the format"))
        })
    }
}

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Array;
        impl<'de> Visitor<'de> for Array {
            type Value = Shape;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array of dimensions")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<Shape, A::Error> {
                let mut shape = Vec::new();
                while let Some(dimension) = array.next_element()? {
                    if shape.len() == MAX_RANK {
                        let reason = format!("a tensor has more than {MAX_RANK} dimensions");
                        return Err(A::Error::custom(reason));
                    }
                    shape.push(dimension);
                }
                Ok(Shape(shape))
            }
        }
        deserializer.deserialize_seq(Array)
    }
}
