//! What can be wrong with a file of weights.

use std::ops::Range;
use std::path::PathBuf;

use super::stored_type::StoredType;
use super::weights_mismatch::WeightsMismatch;

/// What went wrong with a file of weights, read or written; [`Error::Weights`](super::Error::Weights) carries it.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum WeightsError {
    /// The operating system refused a file.
    #[error("{} cannot be {action}: {reason}", path.display())]
    File {
        /// Its path.
        path: PathBuf,
        /// Opened or saved.
        action: &'static str,
        /// The system's words.
        reason: String,
    },
    /// A file is malformed: cut off, damaged, or of another format.
    #[error("{file} is no valid safetensors file: {reason}")]
    InvalidFile {
        /// Its path, or what else it came from.
        file: String,
        /// What is wrong.
        reason: String,
    },
    /// A file is valid, but not of this model.
    #[error("{0}")]
    Mismatch(Box<WeightsMismatch>),
    /// Somebody has written into a file, or cut it off, since it was opened. What was read of it is not used.
    #[error(
        "{file} has changed since it was opened ({given_bytes} bytes, {expected_bytes} then), as reading {part} at byte {offset} \
         found: open it again when nothing writes to it; to replace a file that is in use, rename a new one over it"
    )]
    FileChanged {
        /// Its path.
        file: String,
        /// What was read: a tensor with its name, or the header.
        part: String,
        /// Where in the file it was read.
        offset: u64,
        /// Bytes of the file now.
        given_bytes: u64,
        /// Bytes of the file when it was opened; where they are the same, it was written to.
        expected_bytes: u64,
    },
    /// The operating system could not read a part of a file that is open.
    #[error(
        "{file} cannot be read at byte {offset}, in {part}: {reason}; look whether its disk or network folder is still there, \
         then open it again"
    )]
    Unreadable {
        /// Its path.
        file: String,
        /// What was read: a tensor with its name, or the header.
        part: String,
        /// Where in the file it was read.
        offset: u64,
        /// The system's words.
        reason: String,
    },
    /// Elements or bytes of a tensor were asked for that it does not have.
    #[error(
        "{unit} {given:?} of tensor {tensor} were asked for; it has {limit}: ask for a range within 0..{limit}"
    )]
    RangeOutside {
        /// Its name.
        tensor: String,
        /// Elements or bytes.
        unit: &'static str,
        /// The range given.
        given: Range<usize>,
        /// How many there are.
        limit: u64,
    },
    /// Elements of a tensor were asked for that are more than the memory of this machine.
    #[error(
        "{bytes} bytes for elements of tensor {tensor} are more than this machine has memory for: read a range at a time"
    )]
    HostMemory {
        /// Its name.
        tensor: String,
        /// Bytes that were needed.
        bytes: u64,
    },
    /// A tensor of a file has elements of a type that parameters cannot have.
    #[error("tensor {name} of the file is of type {given}; F32, F16 or BF16 is needed")]
    WrongStoredType {
        /// Its name.
        name: String,
        /// Its type.
        given: StoredType,
    },
    /// A parameter has a finite value that the type to store it in does not.
    #[error("parameter {name} holds {value}, too large for {stored_type}: store it as F32")]
    ValueTooLarge {
        /// Its name.
        name: String,
        /// The value.
        value: f32,
        /// The type.
        stored_type: StoredType,
    },
    /// A file cannot be made as it was asked for.
    #[error("{what} is {given}; it must be {need}")]
    CannotSave {
        /// Name of the option.
        what: &'static str,
        /// The value given.
        given: String,
        /// What a valid value is.
        need: &'static str,
    },
}
