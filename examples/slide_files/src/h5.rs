//! Datasets of HDF5 files.

use hdf5_reader::error::ByteOrder;
use hdf5_reader::{Datatype, Hdf5File, OpenOptions};

use crate::array::{Array, Wanted, shown};
use crate::element::Element;
use crate::error::Error;

const FORMAT: &str = "HDF5";

/// Most bytes that are believed of a dataset for each byte of its file. CLAM and TRIDENT do not compress, and features
/// hardly can be.
const MAX_RATIO: u64 = 64;

/// The dataset called so.
pub fn read(wanted: &Wanted<'_>) -> Result<Vec<f32>, Error> {
    let (_, file_bytes) = wanted.open()?;
    let invalid =
        |error: hdf5_reader::error::Error| wanted.invalid(FORMAT, shown(&error.to_string()));
    let most_bytes = file_bytes.saturating_mul(MAX_RATIO);
    let most = usize::try_from(most_bytes).unwrap_or(usize::MAX);
    // No cache: each dataset is read once.
    let options = OpenOptions::default()
        .with_chunk_cache_bytes(0)
        .with_max_read_bytes(most)
        .with_max_chunk_bytes(most);
    let file = Hdf5File::open_with_options(wanted.path, options).map_err(invalid)?;
    let root = file.root_group().map_err(invalid)?;
    let (_, datasets) = root.member_names().map_err(invalid)?;
    if !datasets.iter().any(|dataset| dataset == wanted.name) {
        return Err(wanted.missing(datasets.iter().map(String::as_str)));
    }
    let dataset = root.dataset(wanted.name).map_err(invalid)?;
    let order = ByteOrder::LittleEndian;
    let element = match dataset.dtype() {
        Datatype::FloatingPoint { size, byte_order } if *byte_order == order => match size {
            2 => Some(Element::F16),
            4 => Some(Element::F32),
            8 => Some(Element::F64),
            _ => None,
        },
        Datatype::FixedPoint {
            size,
            signed,
            byte_order,
        } if *byte_order == order => match (size, signed) {
            (4, true) => Some(Element::I32),
            (8, true) => Some(Element::I64),
            (4, false) => Some(Element::U32),
            (8, false) => Some(Element::U64),
            _ => None,
        },
        _ => None,
    };
    let array = Array {
        wanted,
        format: FORMAT,
        element: element.ok_or_else(|| shown(&format!("{:?}", dataset.dtype()))),
        shape: dataset.shape().to_vec(),
        most_bytes,
    };
    array.check()?;
    let bytes = dataset.read_raw_bytes().map_err(invalid)?;
    array.read(&mut bytes.as_slice())
}
