//! Constants of the kernels of layers.

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
}

impl Activation {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Identity, Self::Relu, Self::Gelu];

    /// Its number in `shared/activation.wgsl`.
    pub(super) fn number(self) -> u32 {
        match self {
            Self::Identity => 0,
            Self::Relu => 1,
            Self::Gelu => 2,
        }
    }
}

/// How a kernel reads rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cell {
    /// Element by element.
    Scalar,
    /// Four elements at a time, of rows whose width is a multiple of 4. On lavapipe a layer norm of 2048 rows takes 7.1 ms at
    /// a width of 512 and 13.8 at 510 (Mesa 26.2.6), 2.4 and 7.7 (25.0.7).
    Vec4,
}

impl Cell {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Scalar, Self::Vec4];

    /// The larger one that rows of `width` are made of.
    pub fn of(width: u64) -> Self {
        match width.is_multiple_of(4) {
            true => Self::Vec4,
            false => Self::Scalar,
        }
    }

    /// Bytes of a cell.
    pub fn bytes(self) -> u64 {
        match self {
            Self::Scalar => 4,
            Self::Vec4 => 16,
        }
    }
}
