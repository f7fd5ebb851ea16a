//! The compute kernels, one module each.
//!
//! A kernel is a shader file in the folder `shaders`, expanded with the numbers that it is compiled for. Its module here holds what
//! the host has to know about it ([`KernelSpec`]): the file, the numbers, the bindings, the parameters, and how much work one
//! workgroup does. To add a kernel, write the shader and its module, and name the module in `kernels!` below.
//!
//! Attention and matrix products have several kernels with the same result, each for one kind of device
//! ([tiers](crate::device::KernelTier)). A family (`family.rs`) chooses between them. Kernels for software drivers only stand
//! apart, in modules and shader folders called `software`.

mod attention;
pub mod attention_backward;
pub mod attention_forward;
pub mod choice;
pub mod cooperative;
mod family;
pub mod matmul;
pub mod remembered;
pub mod shader;
pub mod software;

pub mod activation;
pub mod adamw;
pub mod column_sums;
pub mod convert;
pub mod cross_entropy;
pub mod embedding;
pub mod fill;
pub mod norm;
pub mod pack_keys;
pub mod reduce;
pub mod scaled_add;
pub mod sum_partials;
pub mod token_weights;
mod vector_width;
pub mod xpos;

mod fields;
mod params;
mod pipeline;
mod segments;

pub use attention::{AttentionFamily, AttentionLayout, AttentionParams, AttentionVariant, Pass};
pub use choice::{Choice, Reason};
#[cfg(not(target_arch = "wasm32"))]
pub use family::Candidate;
pub use family::Family;
pub use fields::{Field, Fields};
pub use params::{KernelParams, ParamsInfo};
pub(crate) use pipeline::{Compiler, Pipeline, Pipelines, pipeline_cache};
pub use segments::Segments;
pub use shader::Shader;
pub use vector_width::VectorWidth;

use crate::device::{DeviceCaps, ElementFormat, KernelTier};
use crate::error::Result;

/// How a kernel uses a storage binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// The kernel reads it.
    Read,
    /// The kernel reads and writes it.
    ReadWrite,
}

/// What the host has to know about one kernel.
pub trait KernelSpec {
    /// Name of the shader file, the entry point and the pipeline.
    fn name(&self) -> &'static str;

    /// The numbers and words that the shader file is expanded with. Name and fields identify a kernel: in shader dumps and in files
    /// that remember measurements.
    fn fields(&self) -> Fields;

    /// Storage bindings 1, 2, ... in order; binding 0 is the parameters.
    fn bindings(&self) -> &'static [Access];

    /// Name of the parameter struct in the shader, its bytes, and name and offset of its fields.
    fn params(&self) -> ParamsInfo;

    /// Work of one workgroup of a dispatch with the parameters `params`: roughly its number of multiplications. Only the ratio
    /// between dispatches of the same kernel matters, because the cost model learns each kernel's time per unit of work on the
    /// device.
    fn workgroup_work(&self, params: &[u8]) -> u64;

    /// The kernel's tier; `None` where one kernel serves all devices.
    fn tier(&self) -> Option<KernelTier> {
        None
    }

    /// Bytes of workgroup memory, for kernels whose choice depends on this. A test compares the number with the shader's variables.
    fn workgroup_memory_bytes(&self) -> Option<u32> {
        None
    }

    /// The kernels of this kind for heads of `head_dim` elements and activations stored as `format`, on a device with `caps`.
    fn all(head_dim: u32, format: ElementFormat, caps: &DeviceCaps) -> Vec<Self>
    where
        Self: Sized;
}

/// Declares [`Kernel`], an enum over all kernels that forwards each call to the kernel's [`KernelSpec`].
macro_rules! kernels {
    ($($(#[$doc:meta])* $name:ident($spec:ty),)*) => {
        /// One kernel.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Kernel {
            $($(#[$doc])* $name($spec),)*
        }

        impl Kernel {
            fn spec(&self) -> &dyn KernelSpec {
                match self {
                    $(Self::$name(spec) => spec,)*
                }
            }

            /// All kernels for heads of `head_dim` elements and activations stored as `format`, on a device with `caps`.
            pub fn all(head_dim: u32, format: ElementFormat, caps: &DeviceCaps) -> Vec<Self> {
                let mut kernels = Vec::new();
                $(kernels.extend(<$spec>::all(head_dim, format, caps).into_iter().map(Self::$name));)*
                kernels
            }
        }

        $(
            impl From<$spec> for Kernel {
                fn from(spec: $spec) -> Self {
                    Self::$name(spec)
                }
            }
        )*
    };
}

kernels! {
    /// Attention of one branch, written to or merged into the running output.
    AttentionForward(attention_forward::ForwardVariant),
    /// One pass of the backward of one branch.
    AttentionBackward(attention_backward::BackwardKernel),
    /// Keys and values of one branch, copied out of the tensors of tokens or back.
    PackKeys(pack_keys::PackKeys),
    /// How much one query attends to each key of one branch.
    TokenWeights(token_weights::TokenWeights),
    /// Product of two matrices, each as it is or transposed, with an optional bias, activation and residual.
    Matmul(matmul::MatmulKernel),
    /// Adds up partial results.
    SumPartials(sum_partials::SumPartials),
    /// Layer norm or RMS norm of rows.
    Norm(norm::Norm),
    /// Gradient of the input of a norm, in f32.
    NormBackward(norm::NormBackward),
    /// Sums of columns over blocks of rows.
    ColumnSums(column_sums::ColumnSums),
    /// An activation, element by element.
    Activation(activation::ActivationForward),
    /// Gradient of the input of an activation, in f32.
    ActivationBackward(activation::ActivationBackward),
    /// Scaled sums and dropout, element by element.
    ScaledAdd(scaled_add::ScaledAdd),
    /// Looks up rows of an f32 table.
    Embedding(embedding::Embedding),
    /// Gradient of that table.
    EmbeddingBackward(embedding::EmbeddingBackward),
    /// Rotates and scales pairs of elements by their position (xPos).
    Xpos(xpos::Xpos),
    /// Converts elements between f32 and another type.
    Convert(convert::Convert),
    /// Cross-entropy of rows of logits, and its gradient.
    CrossEntropy(cross_entropy::CrossEntropy),
    /// Sums of blocks of elements, or of their squares.
    Reduce(reduce::Reduce),
    /// One AdamW step.
    AdamW(adamw::AdamW),
    /// Fills 32-bit words with a value.
    Fill(fill::Fill),
}

impl Kernel {
    /// Name of the shader file, the entry point and the pipeline.
    pub fn name(&self) -> &'static str {
        self.spec().name()
    }

    /// The numbers and words that the shader file is expanded with.
    pub fn fields(&self) -> Fields {
        self.spec().fields()
    }

    /// The kernel's identity in files that remember measurements: its name and all its [fields](Self::fields).
    pub fn key(&self) -> String {
        self.fields().key(self.name())
    }

    /// Storage bindings 1, 2, ... in order; binding 0 is the parameters.
    pub fn bindings(&self) -> &'static [Access] {
        self.spec().bindings()
    }

    /// Name of the parameter struct in the shader, its bytes, and name and offset of its fields.
    pub fn params(&self) -> ParamsInfo {
        self.spec().params()
    }

    /// The kernel's tier; `None` where one kernel serves all devices.
    pub fn tier(&self) -> Option<KernelTier> {
        self.spec().tier()
    }

    /// Bytes of workgroup memory, for kernels whose choice depends on this.
    pub fn workgroup_memory_bytes(&self) -> Option<u32> {
        self.spec().workgroup_memory_bytes()
    }

    /// Bytes of the parameter struct.
    pub fn params_bytes(&self) -> u64 {
        self.params().bytes
    }

    /// Byte offset of the field `first_workgroup` in the parameter struct. When a dispatch is submitted in parts, this field says
    /// where a part begins.
    pub(crate) fn first_workgroup_offset(&self) -> Option<usize> {
        let fields = self.params().fields.iter();
        let mut numbers = fields.filter(|(name, _)| *name == "first_workgroup");
        numbers.next().map(|(_, offset)| *offset)
    }

    /// Work of one workgroup of a dispatch with the parameters `params`; see [`KernelSpec::workgroup_work`].
    pub(crate) fn workgroup_work(&self, params: &[u8]) -> f64 {
        self.spec().workgroup_work(params).max(64) as f64
    }

    /// Expands the shader file to the text that is compiled.
    ///
    /// # Errors
    /// [`Error::Validation`](crate::Error::Validation) when the shader file cannot be expanded, which is a mistake in it.
    pub fn shader(&self) -> Result<Shader> {
        Shader::expand(self.name(), &self.fields())
    }
}

/// Width and height of a dispatch with at least `num_workgroups` workgroups, where each dimension may have at most
/// `max_per_dimension`. Kernels number their workgroups `x + y * width` and ignore the surplus. `None` when no such grid is large
/// enough.
pub(crate) fn fold_grid(num_workgroups: u32, max_per_dimension: u32) -> Option<[u32; 2]> {
    let height = num_workgroups.div_ceil(max_per_dimension).max(1);
    (height <= max_per_dimension).then(|| [num_workgroups.div_ceil(height).max(1), height])
}

#[cfg(test)]
mod tests;
