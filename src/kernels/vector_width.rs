//! How many elements the kernels of layers read and write at a time.

use super::Fields;
use crate::device::ElementFormat;

/// How many elements a kernel reads and writes at a time, and in which format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum VectorWidth {
    /// One f32.
    Scalar,
    /// Four elements of this format. The width of rows must be a multiple of 4.
    Vec4(ElementFormat),
}

impl VectorWidth {
    /// All vector widths.
    pub const ALL: [Self; 5] = [
        Self::Scalar,
        Self::Vec4(ElementFormat::F32),
        Self::Vec4(ElementFormat::F16),
        Self::Vec4(ElementFormat::F16Packed),
        Self::Vec4(ElementFormat::Bf16Packed),
    ];

    /// The widest vector for rows of `width` elements: vec4 if `width` is a multiple of 4, as it always is in half precision.
    pub fn of(width: u64, format: ElementFormat) -> Self {
        match width.is_multiple_of(4) {
            true => Self::Vec4(format),
            false => Self::Scalar,
        }
    }

    /// The narrowest vector for elements of `format`, for kernels that gain nothing from vec4. Half-precision elements are always
    /// read as vec4.
    pub fn smallest(format: ElementFormat) -> Self {
        match format {
            ElementFormat::F32 => Self::Scalar,
            _ => Self::Vec4(format),
        }
    }

    /// All vector widths for activations of `format`.
    pub(super) fn stored(format: ElementFormat) -> Vec<Self> {
        match format {
            ElementFormat::F32 => vec![Self::Scalar, Self::Vec4(format)],
            _ => vec![Self::Vec4(format)],
        }
    }

    /// Number of elements in a vector.
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
