//! NumPy's .npz files: zip archives of .npy files.

use std::fs::File;
use std::io::BufReader;

use zip::ZipArchive;

use crate::array::Wanted;
use crate::error::Error;
use crate::geometry::{Attributes, NAMES};
use crate::npy;

const FORMAT: &str = ".npz";

/// Most bytes that deflate makes of one.
const MAX_RATIO: u64 = 1032;

fn open(wanted: &Wanted<'_>) -> Result<(ZipArchive<BufReader<File>>, u64), Error> {
    let (file, file_bytes) = wanted.open()?;
    let archive =
        ZipArchive::new(BufReader::new(file)).map_err(|error| wanted.invalid(FORMAT, error))?;
    Ok((archive, file_bytes))
}

/// What arrays of one or two numbers, or one of text, say of the tiles.
pub fn attributes(wanted: &Wanted<'_>) -> Result<Attributes, Error> {
    let (mut archive, _) = open(wanted)?;
    let mut attributes = Attributes::new();
    for name in NAMES {
        let Some(index) = archive.index_for_name(&format!("{name}.npy")) else {
            continue;
        };
        let mut entry = archive
            .by_index(index)
            .map_err(|error| wanted.invalid(FORMAT, error))?;
        let value = npy::value(&mut entry)
            .map_err(|reason| wanted.invalid(FORMAT, format!("{name}: {reason}")))?;
        attributes.push((name, value));
    }
    Ok(attributes)
}

/// The array called so.
pub fn read(wanted: &Wanted<'_>) -> Result<Vec<f32>, Error> {
    let (mut archive, file_bytes) = open(wanted)?;
    let Some(index) = archive.index_for_name(&format!("{}.npy", wanted.name)) else {
        let names: Vec<_> = archive.file_names().filter_map(Result::ok).collect();
        return Err(wanted.missing(names.iter().map(|name| name.trim_end_matches(".npy"))));
    };
    let mut entry = archive
        .by_index(index)
        .map_err(|error| wanted.invalid(FORMAT, error))?;
    // What the entry says of its size is not believed more than the file's.
    let most_bytes = file_bytes.saturating_mul(MAX_RATIO).min(entry.size());
    npy::read_within(wanted, FORMAT, &mut entry, most_bytes)
}
