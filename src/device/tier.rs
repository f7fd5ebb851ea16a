//! Kernel tiers: kernels with the same result, each for one kind of processor.

use std::fmt;

use super::caps::{DeviceCaps, Processor};
use super::cooperative_matrix::CooperativeMatrix;
use crate::error::{Error, Result};

/// A tier of the kernels for attention and matrix products. All tiers have the same result. Usually the library chooses;
/// [`KernelOptions::tier`](crate::KernelOptions::tier) asks for one tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KernelTier {
    /// Tiles in workgroup memory. Made for GPUs; runs on every device.
    Tile,
    /// Rows in registers. For CPUs whose driver loads an address that all lanes share once.
    Rows,
    /// Rows in registers and subgroup broadcasts. For other CPUs.
    Broadcast,
    /// Cooperative matrices of 8 x 8 x 8, for f16 tensors.
    Coop8,
    /// Cooperative matrices of 16 x 16 x 16, for f16 tensors.
    Coop16,
}

impl KernelTier {
    /// All tiers.
    pub const ALL: [Self; 5] = [
        Self::Tile,
        Self::Rows,
        Self::Broadcast,
        Self::Coop8,
        Self::Coop16,
    ];

    /// The tier that is printed as `name`: `tile`, `rows`, `broadcast`, `coop8` or `coop16`.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|tier| tier.name() == name)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Tile => "tile",
            Self::Rows => "rows",
            Self::Broadcast => "broadcast",
            Self::Coop8 => "coop8",
            Self::Coop16 => "coop16",
        }
    }

    /// The tier of kernels with these cooperative matrices.
    pub(crate) fn of_matrix(matrix: CooperativeMatrix) -> Self {
        match matrix.size {
            8 => Self::Coop8,
            _ => Self::Coop16,
        }
    }

    /// Whether kernels of the tier use cooperative matrices.
    pub fn is_cooperative(self) -> bool {
        matches!(self, Self::Coop8 | Self::Coop16)
    }

    /// Whether a device with `caps` runs kernels of the tier.
    ///
    /// # Errors
    /// [`Error::Unsupported`] with the reason why it does not.
    pub fn check(self, caps: &DeviceCaps) -> Result<()> {
        let lacks = |given: String, need: &str| {
            Err(Error::Unsupported {
                what: format!("kernels of tier {self}"),
                given,
                need: need.to_owned(),
            })
        };
        match (self, &caps.cooperative_matrix, caps.processor) {
            (Self::Tile, ..) | (Self::Rows, _, Processor::Cpu { .. }) => Ok(()),
            (Self::Rows, _, Processor::Gpu) => lacks(
                "it is a GPU".to_owned(),
                "a CPU, or the tiers of GPUs: tile, coop8 or coop16",
            ),
            (Self::Broadcast, _, processor) if processor.has_broadcasts() => Ok(()),
            (Self::Broadcast, ..) => lacks(
                "it is no CPU whose subgroups of 8 lanes hand values over".to_owned(),
                "such a CPU, or another tier: tile runs everywhere",
            ),
            (Self::Coop8 | Self::Coop16, Ok(matrix), _) if Self::of_matrix(*matrix) == self => {
                Ok(())
            }
            (Self::Coop8 | Self::Coop16, Ok(matrix), _) => lacks(
                format!("its cooperative matrices are {matrix}"),
                "the tier of that size",
            ),
            (Self::Coop8 | Self::Coop16, Err(reason), _) => lacks(
                reason.to_string(),
                "cooperative matrices, or a tier without: tile runs everywhere",
            ),
        }
    }
}

impl fmt::Display for KernelTier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::ElementFormat;

    /// Asking for something that the device lacks is an error that says what the device has and what to ask for instead.
    #[test]
    fn what_a_device_lacks_is_told() {
        let plain = DeviceCaps::webgpu_defaults();
        let gpu = DeviceCaps {
            processor: Processor::Gpu,
            ..plain.clone()
        };
        let no_f16 = DeviceCaps {
            shader_f16: false,
            ..plain
        };
        let told = [
            (KernelTier::Rows.check(&gpu), "rows", "it is a GPU"),
            (KernelTier::Broadcast.check(&gpu), "broadcast", "no CPU"),
            (KernelTier::Coop8.check(&gpu), "coop8", "COOPERATIVE"),
            (ElementFormat::F16.check(&no_f16), "F16", "SHADER_F16"),
        ];
        for (result, asked, lacking) in told {
            let Err(Error::Unsupported { what, given, need }) = result else {
                panic!("{result:?}");
            };
            assert!(
                what.contains(asked) && given.contains(lacking) && need.contains(", or "),
                "{what}: {given}; {need}"
            );
        }
        assert_eq!(KernelTier::Tile.check(&gpu), Ok(()));
    }
}
