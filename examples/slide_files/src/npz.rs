//! NumPy's .npz files: zip archives of .npy files.

use std::io::BufReader;

use zip::ZipArchive;

use crate::array::Wanted;
use crate::error::Error;
use crate::npy;

const FORMAT: &str = ".npz";

/// Most bytes that deflate makes of one.
const MAX_RATIO: u64 = 1032;

/// The array called so.
pub fn read(wanted: &Wanted<'_>) -> Result<Vec<f32>, Error> {
    let (file, file_bytes) = wanted.open()?;
    let mut archive =
        ZipArchive::new(BufReader::new(file)).map_err(|error| wanted.invalid(FORMAT, error))?;
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
