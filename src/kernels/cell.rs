//! How kernels of layers read and write rows.

use super::Fields;
use crate::device::Storage;

/// How a kernel reads and writes rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cell {
    /// Element by element, f32.
    Scalar,
    /// Four elements at a time, of rows whose width is a multiple of 4.
    Vec4(Storage),
}

impl Cell {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Scalar,
        Self::Vec4(Storage::F32),
        Self::Vec4(Storage::F16),
        Self::Vec4(Storage::F16Packed),
        Self::Vec4(Storage::Bf16Packed),
    ];

    /// The larger one that rows of `width` are made of. Rows in half precision have widths that are multiples of 4.
    pub fn of(width: u64, storage: Storage) -> Self {
        match width.is_multiple_of(4) {
            true => Self::Vec4(storage),
            false => Self::Scalar,
        }
    }

    /// The one for kernels that gain nothing from four elements at a time, unless two share a word.
    pub fn smallest(storage: Storage) -> Self {
        match storage {
            Storage::F32 => Self::Scalar,
            _ => Self::Vec4(storage),
        }
    }

    /// Those of activations stored so.
    pub(super) fn stored(storage: Storage) -> Vec<Self> {
        match storage {
            Storage::F32 => vec![Self::Scalar, Self::Vec4(storage)],
            _ => vec![Self::Vec4(storage)],
        }
    }

    /// Elements of a cell.
    pub fn elements(self) -> u64 {
        match self {
            Self::Scalar => 1,
            Self::Vec4(_) => 4,
        }
    }

    /// Fields of `cells.wgsl`.
    pub(super) fn fields(self) -> Fields {
        match self {
            Self::Scalar => Fields::new().with("cell", "scalar"),
            Self::Vec4(storage) => Fields::new()
                .with("cell", "vec4")
                .with("format", storage.name()),
        }
    }
}
