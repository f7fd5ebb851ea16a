//! How kernels read and write activations.
//!
//! Every kernel computes in f32. What it reads and writes of activations is stored as one of these; `shaders/shared/elements.wgsl` has
//! the stored type of four elements and both conversions. Half precision needs no feature of the device: a word holds two
//! elements, and a kernel takes it apart. Results are rounded to the nearest, ties to even, on every device: the same bits
//! whether [`SHADER_F16`](wgpu::Features::SHADER_F16) is there or not. What exceeds the largest f16 (65 504) by half a step
//! becomes infinite, as IEEE 754 and other libraries have it; bf16 reaches as far as f32.

use super::caps::DeviceCaps;
use crate::element::DType;
use crate::error::{Error, Result};

/// How a kernel sees activations in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ElementFormat {
    /// f32.
    F32,
    /// f16, on devices with [`SHADER_F16`](wgpu::Features::SHADER_F16).
    F16,
    /// f16, two in a word.
    F16Packed,
    /// bf16, two in a word.
    Bf16Packed,
}

impl ElementFormat {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::F32, Self::F16, Self::F16Packed, Self::Bf16Packed];

    /// How kernels see `what`, a tensor of `dtype`, on a device.
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

    /// The same elements as cooperative matrices take them, where a device with `caps` can show them so.
    pub(crate) fn of_matrices(self, caps: &DeviceCaps) -> Self {
        match self {
            Self::F16Packed if caps.shader_f16 => Self::F16,
            _ => self,
        }
    }

    /// Its name in shader files and in what is remembered of kernels.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::F16Packed => "f16_packed",
            Self::Bf16Packed => "bf16_packed",
        }
    }

    /// Type of the elements.
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

    /// Whether a device with `caps` has it.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when it has not.
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
