//! Element formats: how activations are stored in memory.
//!
//! Every kernel computes in f32, and reads and writes activations in one of these formats. `shaders/shared/elements.wgsl` has the
//! conversions. Half precision needs no feature of the device: a kernel can take two elements out of a 32-bit word. Results are
//! rounded to the nearest, ties to even, with the same bits on every device, whether it has
//! [`SHADER_F16`](wgpu::Features::SHADER_F16) or not. Numbers that exceed the largest f16 (65 504) by half a step or more become
//! infinite, as in IEEE 754. The range of bf16 is that of f32.

use super::caps::DeviceCaps;
use crate::element::DType;
use crate::error::{Error, Result};

/// How a kernel reads and writes activations in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ElementFormat {
    /// f32.
    F32,
    /// f16, on devices with [`SHADER_F16`](wgpu::Features::SHADER_F16).
    F16,
    /// f16, two in a 32-bit word, on any device.
    F16Packed,
    /// bf16, two in a 32-bit word, on any device.
    Bf16Packed,
}

impl ElementFormat {
    /// All element formats.
    pub const ALL: [Self; 4] = [Self::F32, Self::F16, Self::F16Packed, Self::Bf16Packed];

    /// The format in which kernels read a tensor of `dtype` on a device with `caps`. `what` names the tensor in errors.
    ///
    /// # Errors
    /// [`Error::WrongDType`] for integers.
    pub fn of(what: &'static str, dtype: DType, caps: &DeviceCaps) -> Result<Self> {
        match dtype {
            DType::F32 => Ok(Self::F32),
            DType::F16 if caps.reads_f16() => Ok(Self::F16),
            DType::F16 => Ok(Self::F16Packed),
            DType::Bf16 => Ok(Self::Bf16Packed),
            DType::U32 => Err(Error::WrongDType {
                what: what.into(),
                given: dtype,
                need: DType::F32,
            }),
        }
    }

    /// The format for kernels with cooperative matrices: `F16` instead of `F16Packed` if the device can read it.
    pub(crate) fn of_matrices(self, caps: &DeviceCaps) -> Self {
        match self {
            Self::F16Packed if caps.shader_f16 => Self::F16,
            _ => self,
        }
    }

    /// Name of the format in shader files and in the keys of kernels.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::F16Packed => "f16_packed",
            Self::Bf16Packed => "bf16_packed",
        }
    }

    /// The element type.
    pub const fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 | Self::F16Packed => DType::F16,
            Self::Bf16Packed => DType::Bf16,
        }
    }

    /// Bytes of one element.
    pub const fn bytes(self) -> u32 {
        self.dtype().bytes() as u32
    }

    /// Whether a device with `caps` supports the format.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when it does not.
    pub fn check(self, caps: &DeviceCaps) -> Result<()> {
        if self == Self::F16 && !caps.shader_f16 {
            return Err(Error::Unsupported {
                what: format!("kernels for elements stored as {self:?}"),
                given: "it has no SHADER_F16".to_owned(),
                need: "that feature, or elements stored as F16Packed".to_owned(),
            });
        }
        Ok(())
    }
}
