//! Shaders and how they are compiled and called.
//!
//! A [`Kernel`] names one shader file and the constants it is compiled with; it knows the source, the bindings and the
//! parameter struct. `Pipelines` compiles each kernel once per context, on first use.

pub(crate) mod fill;
pub mod forward;

mod params;
mod pipeline;
mod source;

pub use params::{FillParams, ForwardParams, KernelParams};
pub(crate) use pipeline::{Pipeline, Pipelines};

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
}

impl Kernel {
    /// Name of the shader file, the entry point and the pipeline.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Fill => "fill",
            Self::Forward(variant) => variant.shape.name(),
        }
    }

    /// Storage bindings 1, 2, ... in order; binding 0 is the parameters.
    pub fn bindings(&self) -> &'static [Access] {
        use Access::{Read, ReadWrite};
        match self {
            Self::Fill => &[ReadWrite],
            // q, k, v, out, softmax_lse
            Self::Forward(_) => &[Read, Read, Read, ReadWrite, ReadWrite],
        }
    }

    /// Bytes of the parameter struct.
    pub fn params_bytes(&self) -> u64 {
        match self {
            Self::Fill => size_of::<FillParams>() as u64,
            Self::Forward(_) => size_of::<ForwardParams>() as u64,
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
