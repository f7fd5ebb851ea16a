//! Constants of the kernels of layers.

use super::Storage;

/// What a feed-forward network applies between its two products.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Activation {
    /// Nothing.
    #[default]
    Identity,
    /// `max(x, 0)`.
    Relu,
    /// `x/2 (1 + erf(x / sqrt 2))`, exact to the rounding of single precision (Hendrycks and Gimpel 2016).
    Gelu,
    /// `x / (1 + exp(-x))`, also called swish (Elfwing et al. 2017; Ramachandran et al. 2017).
    Silu,
}

impl Activation {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Identity, Self::Relu, Self::Gelu, Self::Silu];

    /// The one that torchscale's `activation_fn` calls so: `relu`, `gelu` or `swish`, which PyTorch calls `silu`.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "relu" => Some(Self::Relu),
            "gelu" => Some(Self::Gelu),
            "swish" | "silu" => Some(Self::Silu),
            _ => None,
        }
    }

    /// Its number in `shared/activation.wgsl`.
    pub(super) fn number(self) -> u32 {
        match self {
            Self::Identity => 0,
            Self::Relu => 1,
            Self::Gelu => 2,
            Self::Silu => 3,
        }
    }
}

/// How a kernel reads and writes rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cell {
    /// Element by element, f32.
    Scalar,
    /// Four elements at a time, of rows whose width is a multiple of 4. On lavapipe a layer norm of 2048 rows takes 7.1 ms at
    /// a width of 512 and 13.8 at 510 (Mesa 26.2.6), 2.4 and 7.7 (25.0.7).
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

    /// Elements of a cell.
    pub fn elements(self) -> u64 {
        match self {
            Self::Scalar => 1,
            Self::Vec4(_) => 4,
        }
    }

    pub(super) fn storage(self) -> Storage {
        match self {
            Self::Scalar => Storage::F32,
            Self::Vec4(storage) => storage,
        }
    }
}
