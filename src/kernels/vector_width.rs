//! How kernels of layers read and write rows.

use super::Fields;
use crate::device::ElementFormat;

/// How a kernel reads and writes rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum VectorWidth {
    /// Element by element, f32.
    Scalar,
    /// Four elements at a time, of rows whose width is a multiple of 4.
    Vec4(ElementFormat),
}

impl VectorWidth {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Scalar,
        Self::Vec4(ElementFormat::F32),
        Self::Vec4(ElementFormat::F16),
        Self::Vec4(ElementFormat::F16Packed),
        Self::Vec4(ElementFormat::Bf16Packed),
    ];

    /// The larger one that rows of `width` are made of. Rows in half precision have widths that are multiples of 4.
    pub fn of(width: u64, format: ElementFormat) -> Self {
        match width.is_multiple_of(4) {
            true => Self::Vec4(format),
            false => Self::Scalar,
        }
    }

    /// The one for kernels that gain nothing from four elements at a time, unless two share a word.
    pub fn smallest(format: ElementFormat) -> Self {
        match format {
            ElementFormat::F32 => Self::Scalar,
            _ => Self::Vec4(format),
        }
    }

    /// Those of activations stored so.
    pub(super) fn stored(format: ElementFormat) -> Vec<Self> {
        match format {
            ElementFormat::F32 => vec![Self::Scalar, Self::Vec4(format)],
            _ => vec![Self::Vec4(format)],
        }
    }

    /// Elements that are read at a time.
    pub fn elements(self) -> u64 {
        match self {
            Self::Scalar => 1,
            Self::Vec4(_) => 4,
        }
    }

    /// Fields of `vector_width.wgsl`.
    pub(super) fn fields(self) -> Fields {
        match self {
            Self::Scalar => Fields::new().with("width", "scalar"),
            Self::Vec4(format) => Fields::new()
                .with("width", "vec4")
                .with("format", format.name()),
        }
    }
}
