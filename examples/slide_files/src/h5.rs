//! Datasets of HDF5 files.

use hdf5_reader::error::ByteOrder;
use hdf5_reader::error::Error as H5Error;
use hdf5_reader::messages::HdfMessage;
use hdf5_reader::messages::filter_pipeline::FilterDescription;
use hdf5_reader::{Attribute, Dataset, Datatype, FilterRegistry, Hdf5File, OpenOptions};

use crate::array::{Array, Wanted, shown};
use crate::element::{Element, number};
use crate::error::Error;
use crate::geometry::{Attributes, Value, known};
use crate::lzf;

const FORMAT: &str = "HDF5";

/// Most bytes that are believed of a dataset for each byte of its file. CLAM and TRIDENT do not compress, and features
/// hardly can be.
const MAX_RATIO: u64 = 64;

/// Numbers of filters. Up to 6 they are HDF5's own, which are read, LZF is h5py's; names of others, so that they can be told.
const SHUFFLE: u16 = 2;
const FLETCHER32: u16 = 3;
const LZF: u16 = 32_000;
const OTHERS: [(u16, &str); 12] = [
    (305, "LZO"),
    (307, "bzip2"),
    (32_001, "Blosc"),
    (32_004, "LZ4"),
    (32_008, "bitshuffle"),
    (32_013, "ZFP"),
    (32_014, "fpzip"),
    (32_015, "Zstandard"),
    (32_017, "SZ"),
    (32_018, "FCIDECOMP"),
    (32_019, "JPEG"),
    (32_026, "Blosc2"),
];

fn invalid(wanted: &Wanted<'_>) -> impl Fn(H5Error) -> Error {
    |error| wanted.invalid(FORMAT, shown(&error.to_string()))
}

/// The file, and most bytes of one of its datasets.
fn open(wanted: &Wanted<'_>) -> Result<(Hdf5File, u64), Error> {
    let (_, file_bytes) = wanted.open()?;
    let most_bytes = file_bytes.saturating_mul(MAX_RATIO);
    let most = usize::try_from(most_bytes).unwrap_or(usize::MAX);
    let mut filters = FilterRegistry::new();
    filters.register(
        LZF,
        Box::new(move |filter, stream, _| {
            // h5py writes the bytes of a chunk as the third of its own values; a checksum may be among them.
            let of_chunk = filter.client_data.get(2);
            let of_chunk = of_chunk.map_or(most, |bytes| (*bytes as usize).saturating_add(4));
            let decoded = lzf::decode(stream, most.min(of_chunk));
            decoded.map_err(|reason| H5Error::DecompressionError(reason.to_owned()))
        }),
    );
    // No cache: each dataset is read once.
    let options = OpenOptions::default()
        .with_chunk_cache_bytes(0)
        .with_max_read_bytes(most)
        .with_max_chunk_bytes(most)
        .with_filter_registry(filters);
    let file = Hdf5File::open_with_options(wanted.path, options).map_err(invalid(wanted))?;
    Ok((file, most_bytes))
}

/// What attributes of `coords`, `features` and the root say of the tiles.
pub fn attributes(wanted: &Wanted<'_>) -> Result<Attributes, Error> {
    let (file, _) = open(wanted)?;
    let invalid = invalid(wanted);
    let root = file.root_group().map_err(&invalid)?;
    let (_, datasets) = root.member_names().map_err(&invalid)?;
    let mut found = Vec::new();
    for name in ["coords", "features"] {
        if datasets.iter().any(|dataset| dataset == name) {
            found.extend(root.dataset(name).map_err(&invalid)?.attributes());
        }
    }
    found.extend(root.attributes().map_err(&invalid)?);
    let read = found.iter().filter_map(|attribute| {
        let name = known(&attribute.name)?;
        Some((name, value(attribute)))
    });
    Ok(read.collect())
}

/// Numbers or text; what is neither, as text that no number is.
fn value(attribute: &Attribute) -> Value {
    let (size, signed, float, order) = match attribute.datatype {
        Datatype::FloatingPoint { size, byte_order } => (size, true, true, byte_order),
        Datatype::FixedPoint {
            size,
            signed,
            byte_order,
        } => (size, signed, false, byte_order),
        _ => {
            let text = attribute.read_string();
            return Value::Text(text.unwrap_or_else(|_| "of another type".to_owned()));
        }
    };
    let numbers = attribute.raw_data.chunks_exact(usize::from(size.max(1)));
    let numbers = numbers.map(|bytes| match order {
        ByteOrder::LittleEndian => number(bytes, signed, float),
        ByteOrder::BigEndian => {
            let bytes: Vec<u8> = bytes.iter().rev().copied().collect();
            number(&bytes, signed, float)
        }
    });
    Value::Numbers(numbers.collect())
}

/// The dataset called so.
pub fn read(wanted: &Wanted<'_>) -> Result<Vec<f32>, Error> {
    let (file, most_bytes) = open(wanted)?;
    let invalid = invalid(wanted);
    let root = file.root_group().map_err(&invalid)?;
    let (groups, datasets) = root.member_names().map_err(&invalid)?;
    if groups.iter().any(|group| group == wanted.name) {
        let group = root.group(wanted.name).map_err(&invalid)?;
        let (groups, datasets) = group.member_names().map_err(&invalid)?;
        return Err(wanted.is_group(datasets.iter().chain(&groups).map(String::as_str)));
    }
    if !datasets.iter().any(|dataset| dataset == wanted.name) {
        return Err(wanted.missing(datasets.iter().chain(&groups).map(String::as_str)));
    }
    let dataset = root.dataset(wanted.name).map_err(&invalid)?;
    let array = Array {
        wanted,
        format: FORMAT,
        element: element(dataset.dtype()),
        shape: dataset.shape().to_vec(),
        most_bytes,
    };
    array.check()?;
    check_filters(wanted, &file, &dataset)?;
    let bytes = dataset.read_raw_bytes().map_err(&invalid)?;
    array.read(&mut bytes.as_slice())
}

/// The type of elements; the error names one that is not read.
fn element(datatype: &Datatype) -> Result<Element, String> {
    let (name, byte_order) = match datatype {
        Datatype::FloatingPoint { size, byte_order } => {
            (format!("F{}", 8 * u32::from(*size)), byte_order)
        }
        Datatype::FixedPoint {
            size,
            signed,
            byte_order,
        } => {
            let letter = if *signed { 'I' } else { 'U' };
            (format!("{letter}{}", 8 * u32::from(*size)), byte_order)
        }
        other => return Err(class(other).to_owned()),
    };
    if *byte_order == ByteOrder::BigEndian {
        return Err(format!("{name}, big-endian"));
    }
    let known = [
        ("F16", Element::F16),
        ("F32", Element::F32),
        ("F64", Element::F64),
        ("I32", Element::I32),
        ("I64", Element::I64),
        ("U32", Element::U32),
        ("U64", Element::U64),
    ];
    let element = known.iter().find(|(known, _)| *known == name);
    element.map(|(_, element)| *element).ok_or(name)
}

/// What a type that is no number is called.
fn class(datatype: &Datatype) -> &'static str {
    match datatype {
        Datatype::FixedPoint { .. } => "integer",
        Datatype::FloatingPoint { .. } => "float",
        Datatype::String { .. } => "text",
        Datatype::Compound { .. } => "record of several fields",
        Datatype::Array { .. } => "array in each element",
        Datatype::Enum { .. } => "enumeration or boolean",
        Datatype::VarLen { .. } => "rows of varying length",
        Datatype::Opaque { .. } => "opaque bytes",
        Datatype::Reference { .. } => "reference",
        Datatype::Bitfield { .. } => "bit field",
    }
}

/// That all filters of its chunks are known, in an order that bounds what each makes.
fn check_filters(wanted: &Wanted<'_>, file: &Hdf5File, dataset: &Dataset) -> Result<(), Error> {
    let header = file.get_or_parse_header(dataset.address());
    let header = header.map_err(invalid(wanted))?;
    let filters = header.messages.iter().find_map(|message| match message {
        HdfMessage::FilterPipeline(pipeline) => Some(pipeline.filters.as_slice()),
        _ => None,
    });
    let filters = filters.unwrap_or_default();
    if let Some(unknown) = filters
        .iter()
        .find(|filter| !matches!(filter.id, 1..=6 | LZF))
    {
        return Err(wanted.filtered(filter_name(unknown)));
    }
    // What is made of LZF's stream by a filter applied after it has no bound of its own.
    let behind = filters.iter().skip_while(|filter| filter.id != LZF).skip(1);
    let mut sizing = behind.filter(|filter| !matches!(filter.id, SHUFFLE | FLETCHER32));
    match sizing.next() {
        Some(filter) => Err(wanted.filtered(format!("{} after LZF", filter_name(filter)))),
        None => Ok(()),
    }
}

fn filter_name(filter: &FilterDescription) -> String {
    let known = OTHERS.iter().find(|(id, _)| *id == filter.id);
    let own = filter.name.as_deref().filter(|name| !name.is_empty());
    match (known, own) {
        (Some((id, name)), _) => format!("{name} ({id})"),
        (None, Some(name)) => format!("{} ({})", shown(name), filter.id),
        (None, None) => filter.id.to_string(),
    }
}
