//! Shaders and how they are compiled and called.
//!
//! A [`Kernel`] names one shader file and the constants it is compiled with; it knows the source, the bindings and the
//! parameter struct. `Pipelines` compiles each kernel once per context, on first use.

pub mod backward;
pub(crate) mod fill;
pub mod forward;

mod params;
mod pipeline;
mod source;

pub use params::{AttentionParams, DeltaParams, FillParams, KernelParams};
pub(crate) use pipeline::{Pipeline, Pipelines};

use backward::BackwardVariant;
use forward::ForwardVariant;

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
    /// Terms of the backward for the true gradient, of heads of `head_dim` elements.
    Delta {
        /// Elements in one head.
        head_dim: u32,
    },
    /// Terms of the backward of one branch whose mixing weights are constants.
    BackwardMeans(BackwardVariant),
    /// Gradient of the queries of one branch.
    BackwardDq(BackwardVariant),
    /// Gradients of the keys and values of one branch.
    BackwardDkDv(BackwardVariant),
}

impl Kernel {
    /// Name of the shader file, the entry point and the pipeline.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Fill => "fill",
            Self::Forward(variant) => variant.shape.name(),
            Self::Delta { .. } => "delta",
            Self::BackwardMeans(variant) => variant.shape.means_name(),
            Self::BackwardDq(variant) => variant.shape.dq_name(),
            Self::BackwardDkDv(variant) => variant.shape.dkdv_name(),
        }
    }

    /// Storage bindings 1, 2, ... in order; binding 0 is the parameters.
    pub fn bindings(&self) -> &'static [Access] {
        use Access::{Read, ReadWrite};
        match self {
            Self::Fill => &[ReadWrite],
            // q, k, v, out, softmax_lse
            Self::Forward(_) => &[Read, Read, Read, ReadWrite, ReadWrite],
            // out, dout, softmax_lse, terms
            Self::Delta { .. } => &[Read, Read, Read, ReadWrite],
            // q, k, v, dout, softmax_lse, terms
            Self::BackwardMeans(_) => &[Read, Read, Read, Read, Read, ReadWrite],
            // q, k, v, dout, terms, dq
            Self::BackwardDq(_) => &[Read, Read, Read, Read, Read, ReadWrite],
            // q, k, v, dout, terms, dk, dv
            Self::BackwardDkDv(_) => &[Read, Read, Read, Read, Read, ReadWrite, ReadWrite],
        }
    }

    /// Bytes of the parameter struct.
    pub fn params_bytes(&self) -> u64 {
        match self {
            Self::Fill => size_of::<FillParams>() as u64,
            Self::Forward(_)
            | Self::BackwardMeans(_)
            | Self::BackwardDq(_)
            | Self::BackwardDkDv(_) => size_of::<AttentionParams>() as u64,
            Self::Delta { .. } => size_of::<DeltaParams>() as u64,
        }
    }

    /// The complete WGSL source: constants, shared fragments, kernel.
    pub fn source(&self) -> String {
        source::assemble(self)
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
