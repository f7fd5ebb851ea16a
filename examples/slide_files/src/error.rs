//! What can be wrong with a file.

use std::path::PathBuf;

/// Why tiles could not be read, or an array not written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The system refused.
    #[error("{} could not be {action}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the system says.
        reason: std::io::Error,
    },
    /// The extension tells no format.
    #[error("{} is no .safetensors, .npz, .npy or .h5 by its name", path.display())]
    UnknownFormat {
        /// The file.
        path: PathBuf,
    },
    /// One .npy file holds one array.
    #[error("{} holds one array; give the coordinates as a second .npy file", path.display())]
    OneNpy {
        /// The file.
        path: PathBuf,
    },
    /// The program was built without HDF5.
    #[error(
        "{} is HDF5, which this program was built without: build it with --features slide-files/h5",
        path.display()
    )]
    WithoutH5 {
        /// The file.
        path: PathBuf,
    },
    /// The file is not what its extension says, or not whole.
    #[error("{} is no whole {format} file: {reason}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What it should be.
        format: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// There is no such array.
    #[error("{} has no {array}; it has {}", path.display(), found.join(", "))]
    Missing {
        /// The file.
        path: PathBuf,
        /// The array.
        array: &'static str,
        /// Names of others, some when there are many.
        found: Vec<String>,
    },
    /// The elements are of another type.
    #[error("{array} of {} is of type {given}; {need} is needed", path.display())]
    Type {
        /// The file.
        path: PathBuf,
        /// The array.
        array: &'static str,
        /// Its type, as the format names it.
        given: String,
        /// What is accepted.
        need: &'static str,
    },
    /// Columns are contiguous, not rows.
    #[error(
        "{array} of {} is in Fortran order; save numpy.ascontiguousarray of it",
        path.display()
    )]
    FortranOrder {
        /// The file.
        path: PathBuf,
        /// The array.
        array: &'static str,
    },
    /// The shape is another.
    #[error("{array} of {} has the shape {given:?}; {need} is needed", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// The array.
        array: &'static str,
        /// Its shape.
        given: Vec<u64>,
        /// What is accepted.
        need: String,
    },
    /// The file is too small for what it says of an array.
    #[error(
        "{array} of {} would take {need_bytes} bytes, of which there can be {given_bytes} at most: the file was cut \
         off, or lies",
        path.display()
    )]
    CutOff {
        /// The file.
        path: PathBuf,
        /// The array.
        array: &'static str,
        /// Bytes that the file has for it, or can hold compressed.
        given_bytes: u64,
        /// Bytes of its shape and type.
        need_bytes: u64,
    },
    /// There are more features than coordinates, or fewer.
    #[error("{} has features of {features} tiles, but there are coordinates of {coords}", path.display())]
    Lengths {
        /// The file with the features.
        path: PathBuf,
        /// Rows of the features.
        features: usize,
        /// Rows of the coordinates.
        coords: usize,
    },
    /// Memory does not suffice.
    #[error("{count} tiles of {feature_dim} features do not fit into memory")]
    TooManyTiles {
        /// Tiles.
        count: usize,
        /// Features of each.
        feature_dim: usize,
    },
}
