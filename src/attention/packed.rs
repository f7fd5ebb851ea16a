//! Packed keys of a recording: which tensors hold them, and what the passes bind.

use crate::device::{ByteRange, DType, ElementFormat};
use crate::error::Result;
use crate::kernels::pack_keys::PackKeys;
use crate::kernels::{Kernel, Pass};
use crate::plan::dispatch::{AttentionDispatch, KeySource};
use crate::recorder::Recorder;
use crate::tensor::Tensor;

/// The kernel of a pass that copies packed keys or their gradients.
pub(super) fn kernel(head_dim: u32, format: ElementFormat, pass: Pass) -> Option<Kernel> {
    let unpacks = match pass {
        Pass::PackKeys | Pass::PackGradients => false,
        Pass::UnpackGradients => true,
        _ => return None,
    };
    let kernel = PackKeys {
        head_dim,
        format,
        unpacks,
    };
    Some(kernel.into())
}

/// The kernels that copy packed keys in `dispatches`.
pub(super) fn kernels(
    head_dim: u32,
    format: ElementFormat,
    dispatches: &[AttentionDispatch],
) -> Vec<Kernel> {
    let passes = [Pass::PackKeys, Pass::UnpackGradients].into_iter();
    let used = passes.filter(|pass| dispatches.iter().any(|dispatch| dispatch.pass == *pass));
    used.filter_map(|pass| kernel(head_dim, format, pass))
        .collect()
}

/// Two tensors for packed keys and values, or for the gradients of both, if a plan packs any.
pub(super) struct PackedKeys(Option<[Tensor; 2]>);

impl PackedKeys {
    /// # Errors
    /// The errors of leasing.
    pub fn lease(
        recorder: &mut Recorder,
        labels: [&'static str; 2],
        bytes: u64,
        dtype: DType,
    ) -> Result<Self> {
        if bytes == 0 {
            return Ok(Self(None));
        }
        // Fits in a usize: at most what a binding covers.
        let shape = [(bytes / dtype.bytes()) as usize];
        let [first, second] = labels;
        let first = recorder.undivided(first, &shape, dtype)?;
        let second = recorder.undivided(second, &shape, dtype)?;
        Ok(Self(Some([first, second])))
    }

    /// Keys and values that are packed already.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn of(tensors: [Tensor; 2]) -> Self {
        Self(Some(tensors))
    }

    /// The tensors, if there are any.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn tensors(&self) -> Option<&[Tensor; 2]> {
        self.0.as_ref()
    }

    /// Zeros for the gradients of these.
    ///
    /// # Errors
    /// The errors of leasing.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn zeros_like(&self, recorder: &mut Recorder, labels: [&'static str; 2]) -> Result<Self> {
        let Some([k, v]) = &self.0 else {
            return Ok(Self(None));
        };
        let mut zeros = |label, like: &Tensor| -> Result<Tensor> {
            let tensor = recorder.undivided(label, like.shape(), like.dtype())?;
            recorder.clear(&tensor, tensor.whole());
            Ok(tensor)
        };
        Ok(Self(Some([zeros(labels[0], k)?, zeros(labels[1], v)?])))
    }

    /// What a dispatch binds in place of `of_tokens`, which hold the keys where their tokens lie.
    pub fn or<'a>(
        &'a self,
        of_tokens: [&'a Tensor; 2],
        dispatch: &AttentionDispatch,
    ) -> [&'a Tensor; 2] {
        match (&self.0, dispatch.keys) {
            (Some(packed), KeySource::Packed { .. }) => packed.each_ref(),
            _ => of_tokens,
        }
    }

    /// The bindings of a dispatch that copies between these and `of_tokens`.
    pub fn copied<'a>(
        &'a self,
        of_tokens: [&'a Tensor; 2],
        dispatch: &AttentionDispatch,
    ) -> [(&'a Tensor, ByteRange); 4] {
        let [k, v] = of_tokens.map(|tensor| (tensor, dispatch.q.bytes));
        let [packed_k, packed_v] = self
            .or(of_tokens, dispatch)
            .map(|tensor| (tensor, dispatch.kv.bytes));
        [k, v, packed_k, packed_v]
    }
}
