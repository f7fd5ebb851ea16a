//! Shaders and how they are compiled and called.
//!
//! A [`Kernel`] names one shader file and the constants it is compiled with; it knows the source, the bindings and the
//! parameter struct. `Pipelines` compiles each kernel once per context, on first use.

pub mod backward;
pub mod coop;
pub(crate) mod fill;
pub mod forward;
pub mod matmul;
mod needs;
mod nn;
pub mod products;

mod params;
mod pipeline;
mod source;
mod storage;
mod tier;
mod work;

pub(crate) use needs::needs;
pub use needs::{MOST_INVOCATIONS, WORKGROUP_MEMORY_BYTES};
pub use nn::{Activation, Cell};
pub use params::*;
pub(crate) use pipeline::{Compiler, Pipeline, Pipelines, pipeline_cache};
pub use storage::Storage;
pub use tier::KernelTier;

use backward::BackwardKernel;
use forward::ForwardVariant;
use matmul::MatmulVariant;

/// How a kernel uses a storage binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// It reads.
    Read,
    /// It reads and writes.
    ReadWrite,
}

/// One shader with its constants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kernel {
    /// Fills words with a value.
    Fill,
    /// Attention of one branch, written to or merged into the running output.
    Forward(ForwardVariant),
    /// One pass of the backward of one branch.
    Backward(BackwardKernel),
    /// How much one query attends to each key of one branch, with heads of `head_dim` elements.
    TokenWeights {
        /// Elements in one head.
        head_dim: u32,
        /// How queries and keys are stored.
        storage: Storage,
    },
    /// Product of two matrices, either transposed, with a bias, an activation and a residual.
    Matmul {
        /// How it is laid out.
        variant: MatmulVariant,
        /// The left factor is stored transposed.
        transpose_a: bool,
        /// The right factor is stored transposed.
        transpose_b: bool,
        /// Applied to the product and bias.
        activation: Activation,
        /// How the left factor is stored; the bias is f32.
        left: Storage,
        /// How the right factor is stored: f32, or as the left one.
        right: Storage,
        /// How the result and the residual are stored.
        result: Cell,
    },
    /// Adds up partial results.
    SumPartials,
    /// Layer norm of rows.
    LayerNorm(Cell),
    /// Gradient of the input of a layer norm, in f32.
    LayerNormBackward(Cell),
    /// Sums of columns over blocks of rows, with `normalised` also of their products with the normalised input.
    ColumnSums {
        /// Whether the products are wanted.
        normalised: bool,
    },
    /// An activation, element by element.
    Activation {
        /// Which one.
        activation: Activation,
        /// How input and result are stored.
        cell: Cell,
    },
    /// Its gradient.
    ActivationBackward(Activation),
    /// Scaled sums and dropout, element by element.
    Blend(Cell),
    /// Rows of a table, which is f32.
    Embedding(Cell),
    /// Gradient of the table.
    EmbeddingBackward,
    /// Relative positions.
    Xpos(Storage),
    /// Elements in another type than f32, from f32.
    FromF32(Storage),
    /// And back.
    ToF32(Storage),
    /// Loss of rows of logits and its gradient.
    CrossEntropy,
    /// Sums of blocks, or of the squares.
    Reduce {
        /// Squares are summed.
        squares: bool,
    },
    /// A step of the optimiser.
    AdamW,
}

impl Kernel {
    /// Name of the shader file, the entry point and the pipeline.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Fill => "fill",
            Self::Forward(variant) => variant.shape.name(),
            Self::Backward(kernel) => kernel.name(),
            Self::TokenWeights { .. } => "token_weights",
            Self::Matmul { variant, .. } => variant.name(),
            Self::SumPartials => "sum_partials",
            Self::LayerNorm(_) => "layer_norm",
            Self::LayerNormBackward(_) => "layer_norm_backward",
            Self::ColumnSums { .. } => "column_sums",
            Self::Activation { .. } => "activation",
            Self::ActivationBackward(_) => "activation_backward",
            Self::Blend(_) => "blend",
            Self::Embedding(_) => "embedding",
            Self::EmbeddingBackward => "embedding_backward",
            Self::Xpos(_) => "xpos",
            Self::FromF32(_) => "from_f32",
            Self::ToF32(_) => "to_f32",
            Self::CrossEntropy => "cross_entropy",
            Self::Reduce { .. } => "reduce",
            Self::AdamW => "adamw",
        }
    }

    /// Storage bindings 1, 2, ... in order; binding 0 is the parameters.
    pub fn bindings(&self) -> &'static [Access] {
        use Access::{Read, ReadWrite};
        match self {
            Self::Fill => &[ReadWrite],
            // q, k, v, out, softmax_state
            Self::Forward(_) => &[Read, Read, Read, ReadWrite, ReadWrite],
            Self::Backward(kernel) => kernel.bindings(),
            // q, k, softmax_state, weights
            Self::TokenWeights { .. } => &[Read, Read, Read, ReadWrite],
            // a, b, bias, residual, c
            Self::Matmul { .. } => &[Read, Read, Read, Read, ReadWrite],
            // x, out; partials, out; x, sums; x, out; x, gradient
            Self::SumPartials
            | Self::Reduce { .. }
            | Self::Activation { .. }
            | Self::ActivationBackward(_)
            | Self::FromF32(_)
            | Self::ToF32(_) => &[Read, ReadWrite],
            // x, gain, bias, y
            Self::LayerNorm(_) => &[Read, Read, Read, ReadWrite],
            // x, gain, dy, dx, stats
            Self::LayerNormBackward(_) => &[Read, Read, Read, ReadWrite, ReadWrite],
            // x, stats, dy, partials
            Self::ColumnSums { .. } => &[Read, Read, Read, ReadWrite],
            // x, y, out; ids, table, out
            Self::Blend(_) | Self::Embedding(_) => &[Read, Read, ReadWrite],
            // runs, order, dout, dtable
            Self::EmbeddingBackward => &[Read, Read, Read, ReadWrite],
            // rotations, x
            Self::Xpos(_) => &[Read, ReadWrite],
            // labels, logits, losses
            Self::CrossEntropy => &[Read, ReadWrite, ReadWrite],
            // norm_squared, gradient, value, moment_1, moment_2
            Self::AdamW => &[Read, Read, ReadWrite, ReadWrite, ReadWrite],
        }
    }

    /// Name of the parameter struct in the shader, its bytes, and name and offset of its fields.
    pub fn params(&self) -> ParamsInfo {
        match self {
            Self::Fill => ParamsInfo::of::<FillParams>("FillParams"),
            Self::Forward(_) | Self::Backward(_) => {
                ParamsInfo::of::<AttentionParams>("AttentionParams")
            }
            Self::TokenWeights { .. } => ParamsInfo::of::<TokenWeightsParams>("TokenWeightsParams"),
            Self::Matmul { .. } => ParamsInfo::of::<MatmulParams>("MatmulParams"),
            Self::SumPartials => ParamsInfo::of::<SumPartialsParams>("SumPartialsParams"),
            Self::LayerNorm(_) | Self::LayerNormBackward(_) => {
                ParamsInfo::of::<LayerNormParams>("LayerNormParams")
            }
            Self::ColumnSums { .. } => ParamsInfo::of::<ColumnSumsParams>("ColumnSumsParams"),
            Self::Activation { .. }
            | Self::ActivationBackward(_)
            | Self::FromF32(_)
            | Self::ToF32(_) => ParamsInfo::of::<ElementwiseParams>("ElementwiseParams"),
            Self::Blend(_) => ParamsInfo::of::<BlendParams>("BlendParams"),
            Self::Embedding(_) => ParamsInfo::of::<EmbeddingParams>("EmbeddingParams"),
            Self::EmbeddingBackward => {
                ParamsInfo::of::<EmbeddingBackwardParams>("EmbeddingBackwardParams")
            }
            Self::Xpos(_) => ParamsInfo::of::<XposParams>("XposParams"),
            Self::CrossEntropy => ParamsInfo::of::<CrossEntropyParams>("CrossEntropyParams"),
            Self::Reduce { .. } => ParamsInfo::of::<ReduceParams>("ReduceParams"),
            Self::AdamW => ParamsInfo::of::<AdamWParams>("AdamWParams"),
        }
    }

    /// Whether it stores f16, which needs [`SHADER_F16`](wgpu::Features::SHADER_F16).
    pub fn stores_f16(&self) -> bool {
        let storages = match self {
            Self::Forward(variant) => [variant.storage; 2],
            Self::Backward(kernel) => [kernel.variant().storage; 2],
            Self::TokenWeights { storage, .. }
            | Self::Xpos(storage)
            | Self::FromF32(storage)
            | Self::ToF32(storage) => [*storage; 2],
            Self::Matmul { left, result, .. } => [*left, result.storage()],
            Self::LayerNorm(cell)
            | Self::LayerNormBackward(cell)
            | Self::Activation { cell, .. }
            | Self::Blend(cell)
            | Self::Embedding(cell) => [cell.storage(); 2],
            Self::Fill
            | Self::SumPartials
            | Self::ColumnSums { .. }
            | Self::ActivationBackward(_)
            | Self::EmbeddingBackward
            | Self::CrossEntropy
            | Self::Reduce { .. }
            | Self::AdamW => [Storage::F32; 2],
        };
        storages.contains(&Storage::F16)
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

    /// The complete WGSL source: constants, shared fragments, kernel.
    pub fn source(&self) -> String {
        source::assemble(self)
    }
}

/// Layout of a parameter struct.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParamsInfo {
    /// Name in the shader.
    pub name: &'static str,
    /// Bytes.
    pub bytes: u64,
    /// Name and offset of each field, in order.
    pub fields: &'static [(&'static str, usize)],
}

impl ParamsInfo {
    fn of<P: KernelParams>(name: &'static str) -> Self {
        Self {
            name,
            bytes: size_of::<P>() as u64,
            fields: P::FIELDS,
        }
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
