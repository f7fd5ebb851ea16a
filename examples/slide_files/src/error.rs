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
    /// It is another kind of file.
    #[error("{} is {is}: {remedy}", path.display())]
    AnotherKind {
        /// The file.
        path: PathBuf,
        /// What it is.
        is: &'static str,
        /// What to do.
        remedy: &'static str,
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
    /// There is a group of that name, not an array.
    #[error(
        "{array} of {} is a group, not an array; it has {}",
        path.display(),
        found.join(", ")
    )]
    Group {
        /// The file.
        path: PathBuf,
        /// What should be the array.
        array: &'static str,
        /// Names of what is in the group, some when there are many.
        found: Vec<String>,
    },
    /// Its chunks are compressed in a way that is not known here.
    #[error(
        "{array} of {path} is stored through the filter {filter}, which is not known here; store it with gzip: \
         h5repack -f GZIP=4 {path} NEW.h5, or in Python f.create_dataset(\"{array}\", data=old[\"{array}\"][:], \
         compression=\"gzip\")",
        path = path.display()
    )]
    Filter {
        /// The file.
        path: PathBuf,
        /// The array.
        array: &'static str,
        /// Name and number of the filter.
        filter: String,
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
    /// Features of another width than the model's: another encoder computed them.
    #[error("features of {} are {given} wide{by}; this model wants features {need} wide{hint}", path.display())]
    Width {
        /// The file.
        path: PathBuf,
        /// Features of a tile in the file.
        given: u64,
        /// Which encoder the file names, if any, in words.
        by: String,
        /// Features of a tile that the model takes.
        need: usize,
        /// Who gives such, where it is known.
        hint: &'static str,
    },
    /// What the file, the caller and the coordinates say of the tiles' size contradicts itself.
    #[error("{what}; {advice}")]
    Geometry {
        /// What contradicts what.
        what: String,
        /// The ways out.
        advice: String,
    },
    /// The file says that another encoder computed its features.
    #[error(
        "features were computed by \"{given}\", as the file says; this model wants those of {need}: compute them \
         with it, or give --any-encoder if you know better"
    )]
    Encoder {
        /// The encoder that the file names.
        given: String,
        /// The one that the model was trained with.
        need: &'static str,
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
