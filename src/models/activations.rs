//! Uploads and downloads of activations, which are f32 on the host, whatever their type on the device.

use half::{bf16, f16};

use crate::device::DType;
use crate::error::Result;
use crate::readback::Download;
use crate::recorder::Recorder;
use crate::tensor::Tensor;

/// Uploads `values` as a tensor of `dtype`, each rounded once.
pub(super) fn upload(
    recorder: &mut Recorder,
    label: &'static str,
    shape: &[usize],
    values: &[f32],
    dtype: DType,
) -> Result<Tensor> {
    match dtype {
        DType::F16 => {
            let values: Vec<f16> = values.iter().copied().map(f16::from_f32).collect();
            recorder.upload(label, shape, &values)
        }
        DType::Bf16 => {
            let values: Vec<bf16> = values.iter().copied().map(bf16::from_f32).collect();
            recorder.upload(label, shape, &values)
        }
        _ => recorder.upload(label, shape, values),
    }
}

/// A download of activations.
#[derive(Debug)]
pub(super) enum ActivationDownload {
    F32(Download<f32>),
    F16(Download<f16>),
    Bf16(Download<bf16>),
}

impl ActivationDownload {
    pub fn start(recorder: &mut Recorder, tensor: &Tensor) -> Result<Self> {
        Ok(match tensor.dtype() {
            DType::F16 => Self::F16(recorder.download(tensor)?),
            DType::Bf16 => Self::Bf16(recorder.download(tensor)?),
            _ => Self::F32(recorder.download(tensor)?),
        })
    }

    pub async fn values(self) -> Result<Vec<f32>> {
        Ok(match self {
            Self::F32(download) => download.await?,
            Self::F16(download) => download.await?.into_iter().map(f16::to_f32).collect(),
            Self::Bf16(download) => download.await?.into_iter().map(bf16::to_f32).collect(),
        })
    }
}
