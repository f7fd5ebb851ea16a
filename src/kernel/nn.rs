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
