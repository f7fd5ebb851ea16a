//! Arrays of safetensors files.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

use safetensors::Dtype;
use safetensors::tensor::Metadata;

use crate::array::{Array, Wanted, shown};
use crate::element::Element;
use crate::error::Error;
use crate::geometry::{Attributes, Value, known};

const FORMAT: &str = "safetensors";

/// Bytes of the length before the header.
const LENGTH_BYTES: u64 = 8;

/// Largest header that readers of the format accept.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// The file, its size, its header and where that ends. It is not mapped or read whole.
fn open(wanted: &Wanted<'_>) -> Result<(File, u64, Metadata, u64), Error> {
    let (mut file, file_bytes) = wanted.open()?;
    let invalid = |reason: String| wanted.invalid(FORMAT, reason);
    let failed = |error: io::Error| invalid(error.to_string());
    let mut length = [0; LENGTH_BYTES as usize];
    file.read_exact(&mut length).map_err(failed)?;
    let length = u64::from_le_bytes(length);
    let most = file_bytes.saturating_sub(LENGTH_BYTES);
    if length > most.min(MAX_HEADER_BYTES) {
        return Err(invalid(format!(
            "its header would have {length} bytes; the file has {file_bytes}"
        )));
    }
    let mut header = vec![0; length as usize];
    file.read_exact(&mut header).map_err(failed)?;
    let header: Metadata =
        serde_json::from_slice(&header).map_err(|error| invalid(shown(&error.to_string())))?;
    Ok((file, file_bytes, header, LENGTH_BYTES + length))
}

/// What the file's metadata says of its tiles.
pub fn attributes(wanted: &Wanted<'_>) -> Result<Attributes, Error> {
    let (_, _, header, _) = open(wanted)?;
    let metadata = header.metadata().iter().flatten();
    let read = metadata.filter_map(|(name, text)| Some((known(name)?, Value::of_text(text))));
    Ok(read.collect())
}

/// The tensor called so.
pub fn read(wanted: &Wanted<'_>) -> Result<Vec<f32>, Error> {
    let (mut file, file_bytes, header, data) = open(wanted)?;
    let failed = |error: io::Error| wanted.invalid(FORMAT, error);
    let Some(info) = header.info(wanted.name) else {
        let names = header.offset_keys();
        return Err(wanted.missing(names.iter().map(String::as_str)));
    };
    let element = match info.dtype {
        Dtype::F16 => Ok(Element::F16),
        Dtype::BF16 => Ok(Element::Bf16),
        Dtype::F32 => Ok(Element::F32),
        Dtype::F64 => Ok(Element::F64),
        Dtype::I32 => Ok(Element::I32),
        Dtype::I64 => Ok(Element::I64),
        Dtype::U32 => Ok(Element::U32),
        Dtype::U64 => Ok(Element::U64),
        other => Err(other.to_string()),
    };
    let begin = data.saturating_add(info.data_offsets.0 as u64);
    let array = Array {
        wanted,
        format: FORMAT,
        element,
        shape: info.shape.iter().map(|dim| *dim as u64).collect(),
        most_bytes: file_bytes.saturating_sub(begin),
    };
    array.check()?;
    file.seek(SeekFrom::Start(begin)).map_err(failed)?;
    array.read(&mut file)
}
