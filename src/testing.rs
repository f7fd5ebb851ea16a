//! The insides of this library: kernels with their numbers, dispatches, devices and pools that are not there, f64 layers. For the
//! tests, benchmarks and tools of its own repository, under the feature `testing`. Anything here may change in any release.

pub use crate::device::caps::Processor;
pub use crate::device::cooperative_matrix::CooperativeMatrix;
pub use crate::device::element_format::ElementFormat;
pub use crate::device::limits::MOST_INVOCATIONS;
pub use crate::kernels::attention_backward::{BackwardFamily, BackwardVariant};
pub use crate::kernels::attention_forward::{ForwardFamily, ForwardVariant};
pub use crate::kernels::fill::Fill;
pub use crate::kernels::matmul::{MatmulFamily, MatmulVariant};
pub use crate::kernels::software::LaneGroups;
pub use crate::kernels::software::matmul::BroadcastTile;
pub use crate::kernels::{Access, Choice, Family, Kernel, Pass, Reason};
pub use crate::nn::block::{Block, Memory, Pass as BlockPass, Sublayer};
pub use crate::ops::adamw::{AdamWStep, adamw};
pub use crate::plan::branch::BranchGeometry;
pub use crate::plan::dispatch::AttentionDispatch;
pub use crate::plan::window::TokenWindow;
pub use crate::pool::simulated::{Faults, SimulatedBuffer, SimulatedSource};

/// Layers in f64.
pub mod layers {
    pub use crate::reference::layers::*;
}

/// LongNet in f64.
pub mod model {
    pub use crate::reference::model::*;
}

/// Attention in f32, with storage in half precision or not: how precise is precise enough.
pub mod plain {
    pub use crate::reference::plain::*;
}

use crate::attention::DilatedAttention;
use crate::context::{Context, WarmUp, warm_up};
use crate::device::DType;
use crate::error::Result;
use crate::ops::Matmul;
use crate::plan::ForwardPlan;
use crate::recorder::Recorder;

impl DilatedAttention {
    /// The same, with a forward kernel of the caller's choice. For tensors of another type than its own it is compiled for
    /// theirs, but for cooperative matrices, which are for f16 only: then the device's own choice takes its place.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`](crate::Error::InvalidConfig) when the kernel does not fit the head size,
    /// [`Error::Unsupported`](crate::Error::Unsupported) when it does not fit the device.
    pub fn with_variant(self, variant: ForwardVariant) -> Result<Self> {
        self.with_forward_kernel(variant)
    }

    /// The same, with other kernels for the backward.
    ///
    /// # Errors
    /// As [`with_variant`](Self::with_variant).
    pub fn with_backward_variant(self, variant: BackwardVariant) -> Result<Self> {
        self.with_backward_kernels(variant)
    }

    /// The forward's kernel for tensors of `dtype`, and why it was chosen.
    ///
    /// # Errors
    /// [`Error::WrongDType`](crate::Error::WrongDType) for integers.
    pub fn choice(&self, dtype: DType) -> Result<Choice<ForwardVariant>> {
        self.forward_choice(dtype)
    }

    /// The forward's kernel for tensors of `dtype`.
    ///
    /// # Errors
    /// As [`choice`](Self::choice).
    pub fn variant(&self, dtype: DType) -> Result<ForwardVariant> {
        Ok(self.forward_choice(dtype)?.variant)
    }

    /// The backward's kernels for tensors of `dtype`.
    ///
    /// # Errors
    /// As [`choice`](Self::choice).
    pub fn backward_variant(&self, dtype: DType) -> Result<BackwardVariant> {
        Ok(self.backward_choice(dtype)?.variant)
    }
}

impl ForwardPlan {
    /// The dispatches, in order.
    pub fn dispatches(&self) -> &[AttentionDispatch] {
        &self.dispatches
    }

    /// Half-open ranges of rows (`item * seq_len + token`) whose output and softmax state are cleared to 0 first.
    pub fn clears(&self) -> &[(u64, u64)] {
        &self.clears
    }
}

impl Recorder {
    /// The kernels recorded so far, each once, in order of first use.
    pub fn kernels(&self) -> Vec<Kernel> {
        self.recorded_kernels()
    }
}

impl Context {
    /// Compiles `kernels`.
    ///
    /// # Errors
    /// As [`warm_up`](Self::warm_up).
    pub fn compile_ahead(&self, kernels: &[Kernel]) -> Result<WarmUp> {
        warm_up::compile(self, kernels)
    }
}

impl Matmul<'_> {
    /// With a kernel of the caller's choice instead of the one that suits the device.
    pub fn with_variant(self, variant: MatmulVariant) -> Self {
        self.with_kernel(variant)
    }
}
