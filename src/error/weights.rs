//! Errors of weight files.

use std::ops::Range;
use std::path::PathBuf;

use super::stored_type::StoredType;
use super::weights_mismatch::WeightsMismatch;

/// An error in reading or writing a weight file. [`Error::Weights`](super::Error::Weights) wraps it.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum WeightsError {
    /// The operating system refused to open or save a file.
    #[error("{} cannot be {action}: {reason}", path.display())]
    File {
        /// Path of the file.
        path: PathBuf,
        /// "opened" or "saved".
        action: &'static str,
        /// The system's message.
        reason: String,
    },
    /// A file is malformed: cut off, damaged, or of another format.
    #[error("{file} is no valid safetensors file: {reason}")]
    InvalidFile {
        /// Path of the file, or another description of its source.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file is valid, but no checkpoint that [`Trainer::save`](crate::training::Trainer::save) wrote.
    #[error(
        "{file} is no checkpoint of a training: its metadata do not say so; load its weights with WeightSource::load and train them \
         with Trainer::from_weights"
    )]
    NoCheckpoint {
        /// Path of the file, or another description of its source.
        file: String,
    },
    /// A file is valid, but does not fit the model.
    #[error("{0}")]
    Mismatch(Box<WeightsMismatch>),
    /// A file was written to or cut off after it was opened. Nothing that was read from it is used.
    #[error(
        "{file} has changed since it was opened ({given_bytes} bytes, {expected_bytes} then), as reading {part} at byte {offset} \
         found: open it again when nothing writes to it; to replace a file that is in use, rename a new one over it"
    )]
    FileChanged {
        /// Path of the file.
        file: String,
        /// The part that was being read: the header, or a tensor with its name.
        part: String,
        /// Byte offset of the read in the file.
        offset: u64,
        /// Bytes of the file now.
        given_bytes: u64,
        /// Bytes of the file when it was opened. If both numbers are the same, the file was written to.
        expected_bytes: u64,
    },
    /// The operating system failed to read a part of an open file.
    #[error(
        "{file} cannot be read at byte {offset}, in {part}: {reason}; look whether its disk or network folder is still there, \
         then open it again"
    )]
    Unreadable {
        /// Path of the file.
        file: String,
        /// The part that was being read: the header, or a tensor with its name.
        part: String,
        /// Byte offset of the read in the file.
        offset: u64,
        /// The system's message.
        reason: String,
    },
    /// A requested range of elements or bytes is outside of a tensor.
    #[error(
        "{unit} {given:?} of tensor {tensor} were asked for; it has {limit}: ask for a range within 0..{limit}"
    )]
    RangeOutside {
        /// Name of the tensor.
        tensor: String,
        /// "elements" or "bytes".
        unit: &'static str,
        /// The requested range.
        given: Range<usize>,
        /// Number of elements or bytes of the tensor.
        limit: u64,
    },
    /// This machine has too little memory for the requested elements of a tensor.
    #[error(
        "{bytes} bytes for elements of tensor {tensor} are more than this machine has memory for: read a range at a time"
    )]
    HostMemory {
        /// Name of the tensor.
        tensor: String,
        /// Bytes that were needed.
        bytes: u64,
    },
    /// A tensor in a file has an element type that parameters cannot have.
    #[error("tensor {name} of the file is of type {given}; F32, F16 or BF16 is needed")]
    WrongStoredType {
        /// Name of the tensor.
        name: String,
        /// Element type of the tensor.
        given: StoredType,
    },
    /// A finite value of a parameter would become infinite in the type in which it is to be stored.
    #[error("parameter {name} holds {value}, too large for {stored_type}: store it as F32")]
    ValueTooLarge {
        /// Name of the parameter.
        name: String,
        /// The value.
        value: f32,
        /// The type in which it is to be stored.
        stored_type: StoredType,
    },
    /// A file cannot be written with the given options.
    #[error("{what} is {given}; it must be {need}")]
    CannotSave {
        /// Name of the option.
        what: &'static str,
        /// The given value.
        given: String,
        /// The values that are valid.
        need: &'static str,
    },
}
