//! Activations of feed-forward networks, element by element, and their gradients.

use super::params::{LITTLE_WORK, params};
use super::{Access, Fields, KernelSpec, ParamsInfo, VectorWidth};
use crate::device::{DeviceCaps, ElementFormat};

/// The activation that a feed-forward network applies between its two matrix products.
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
    /// All activations.
    pub const ALL: [Self; 4] = [Self::Identity, Self::Relu, Self::Gelu, Self::Silu];

    /// The activation that torchscale's `activation_fn` calls `name`: `relu`, `gelu` or `swish`, or `silu`, PyTorch's name for swish.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "relu" => Some(Self::Relu),
            "gelu" => Some(Self::Gelu),
            "swish" | "silu" => Some(Self::Silu),
            _ => None,
        }
    }

    /// Its name in shader files.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Relu => "relu",
            Self::Gelu => "gelu",
            Self::Silu => "silu",
        }
    }
}

params! {
    /// Parameters of `activation.wgsl`, which says what each means.
    ElementwiseParams { count: u32, x_skip: u32, out_skip: u32, first_workgroup: u32, grid_width: u32 }
}

/// An activation, element by element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ActivationForward {
    /// Which activation.
    pub activation: Activation,
    /// How input and result are stored, and how many elements a lane takes at a time.
    pub vector_width: VectorWidth,
}

impl KernelSpec for ActivationForward {
    fn name(&self) -> &'static str {
        "activation"
    }

    fn fields(&self) -> Fields {
        Fields::new()
            .with("activation", self.activation.word())
            .and(self.vector_width.fields())
    }

    fn bindings(&self) -> &'static [Access] {
        // x, out
        &[Access::Read, Access::ReadWrite]
    }

    fn params(&self) -> ParamsInfo {
        ParamsInfo::of::<ElementwiseParams>()
    }

    fn workgroup_work(&self, _: &[u8]) -> u64 {
        LITTLE_WORK
    }

    fn all(_: u32, format: ElementFormat, _: &DeviceCaps) -> Vec<Self> {
        let vectors = VectorWidth::stored(format).into_iter();
        vectors
            .flat_map(|vector_width| {
                Activation::ALL.map(|activation| Self {
                    activation,
                    vector_width,
                })
            })
            .collect()
    }
}

/// Gradient of the input of an activation, in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ActivationBackward {
    /// Which activation.
    pub activation: Activation,
}

impl KernelSpec for ActivationBackward {
    fn name(&self) -> &'static str {
        "activation_backward"
    }

    fn fields(&self) -> Fields {
        Fields::new()
            .with("activation", self.activation.word())
            .and(VectorWidth::Scalar.fields())
    }

    fn bindings(&self) -> &'static [Access] {
        // x, gradient
        &[Access::Read, Access::ReadWrite]
    }

    fn params(&self) -> ParamsInfo {
        ParamsInfo::of::<ElementwiseParams>()
    }

    fn workgroup_work(&self, _: &[u8]) -> u64 {
        LITTLE_WORK
    }

    fn all(_: u32, format: ElementFormat, _: &DeviceCaps) -> Vec<Self> {
        Activation::ALL
            .map(|activation| Self { activation })
            .into_iter()
            .filter(|_| format == ElementFormat::F32)
            .collect()
    }
}
