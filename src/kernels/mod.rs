//! Kernels: what runs on the device, one room for each family.
//!
//! A kernel is a shader file of the folder `shaders` with the numbers it is compiled for. Its room here says all that the host has to
//! know of it ([`KernelSpec`]): file, numbers, bindings, parameters, and how much one workgroup does. To add one, write the shader
//! and the room, and name the room in the list below.
//!
//! Of attention and of products there are several [tiers](crate::device::KernelTier) that compute the same, each for one kind of device;
//! a family (family.rs) decides between them. What software drivers alone run stands in modules and shader folders of its
//! own, both called `software`.

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
pub use family::{Candidate, Family};
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
    /// It reads.
    Read,
    /// It reads and writes.
    ReadWrite,
}

/// What the host knows of one kernel.
pub trait KernelSpec {
    /// Name of the shader file, the entry point and the pipeline.
    fn name(&self) -> &'static str;

    /// The numbers and words that the shader file is expanded with. Together with the name they are all that tells this kernel from
    /// others, in a shader dump and in what is remembered of it.
    fn fields(&self) -> Fields;

    /// Storage bindings 1, 2, ... in order; binding 0 is the parameters.
    fn bindings(&self) -> &'static [Access];

    /// Name of the parameter struct in the shader, its bytes, and name and offset of its fields.
    fn params(&self) -> ParamsInfo;

    /// Work of one workgroup of a dispatch with the parameters `params`, in multiplications, roughly. What counts is that two
    /// dispatches of one kernel compare: time divided by this is then a property of the kernel on its device, which is
    /// learned.
    fn workgroup_work(&self, params: &[u8]) -> u64;

    /// The tier that the kernel is of; none where there is one kernel for all devices.
    fn tier(&self) -> Option<KernelTier> {
        None
    }

    /// Bytes of workgroup memory, where the choice of the kernel depends on them. A test compares them with the shader's variables.
    fn workgroup_memory_bytes(&self) -> Option<u32> {
        None
    }

    /// The kernels of this kind for heads of `head_dim` elements and activations stored as `format`, on a device with `caps`.
    fn all(head_dim: u32, format: ElementFormat, caps: &DeviceCaps) -> Vec<Self>
    where
        Self: Sized;
}

/// Declares [`Kernel`] and hands what it is asked to the rooms.
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
    /// How much one query attends to each key of one branch.
    TokenWeights(token_weights::TokenWeights),
    /// Product of two matrices, either transposed, with a bias, an activation and a residual.
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
    /// Its gradient.
    ActivationBackward(activation::ActivationBackward),
    /// Scaled sums and dropout, element by element.
    ScaledAdd(scaled_add::ScaledAdd),
    /// Rows of a table, which is f32.
    Embedding(embedding::Embedding),
    /// Gradient of the table.
    EmbeddingBackward(embedding::EmbeddingBackward),
    /// Relative positions.
    Xpos(xpos::Xpos),
    /// Elements in another type.
    Convert(convert::Convert),
    /// Loss of rows of logits and its gradient.
    CrossEntropy(cross_entropy::CrossEntropy),
    /// Sums of blocks, or of the squares.
    Reduce(reduce::Reduce),
    /// A step of the optimiser.
    AdamW(adamw::AdamW),
    /// Fills words with a value.
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

    /// What the kernel is remembered as in files: its name and all its [fields](Self::fields).
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

    /// The tier that the kernel is of; none where there is one kernel for all devices.
    pub fn tier(&self) -> Option<KernelTier> {
        self.spec().tier()
    }

    /// Bytes of workgroup memory, where the choice of the kernel depends on them.
    pub fn workgroup_memory_bytes(&self) -> Option<u32> {
        self.spec().workgroup_memory_bytes()
    }

    /// Bytes of the parameter struct.
    pub fn params_bytes(&self) -> u64 {
        self.params().bytes
    }

    /// Where its parameters hold the number of the first workgroup.
    pub(crate) fn first_workgroup_offset(&self) -> Option<usize> {
        let fields = self.params().fields.iter();
        let mut numbers = fields.filter(|(name, _)| *name == "first_workgroup");
        numbers.next().map(|(_, offset)| *offset)
    }

    /// Work of one workgroup of a dispatch with the parameters `params`; see [`KernelSpec::workgroup_work`].
    pub(crate) fn workgroup_work(&self, params: &[u8]) -> f64 {
        self.spec().workgroup_work(params).max(64) as f64
    }

    /// The text that is compiled.
    ///
    /// # Errors
    /// [`Error::Validation`](crate::Error::Validation) when the shader file cannot be expanded, which is a mistake in it.
    pub fn shader(&self) -> Result<Shader> {
        Shader::expand(self.name(), &self.fields())
    }
}

/// A grid of at least `num_workgroups` workgroups within the device's limit per dimension, as square as need be: kernels
/// compute `x + y * width` and ignore numbers that are too large. `None` when there are too many.
pub(crate) fn fold_grid(num_workgroups: u32, max_per_dimension: u32) -> Option<[u32; 2]> {
    let height = num_workgroups.div_ceil(max_per_dimension).max(1);
    (height <= max_per_dimension).then(|| [num_workgroups.div_ceil(height).max(1), height])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grids_fold_beyond_the_limit_of_a_dimension() {
        for n in [1, 7, 65_535, 65_536, 70_000, 1 << 20, u32::MAX - 131_072] {
            let [x, y] = fold_grid(n, 65_535).expect("fits");
            assert!(x <= 65_535 && y <= 65_535);
            assert!(u64::from(x) * u64::from(y) >= u64::from(n));
            assert!(u64::from(x) * u64::from(y) < u64::from(n) + u64::from(y));
        }
        assert_eq!(fold_grid(1 << 20, 1000), None);
    }
}
