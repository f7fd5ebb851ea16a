//! Tiers: kernels that compute the same, each for one kind of processor.

use std::fmt;

use super::caps::{DeviceCaps, Processor};
use super::cooperative_matrix::CooperativeMatrix;
use crate::error::{Error, Result};

/// A tier of the kernels of attention and products. All compute the same;
/// [`KernelOptions::tier`](crate::KernelOptions::tier) asks for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KernelTier {
    /// Tiles in workgroup memory, for all GPUs; every device runs it.
    Tile,
    /// Rows in registers, for CPUs whose driver loads an address that all lanes share once.
    Rows,
    /// Rows in registers and subgroup broadcasts, for other CPUs.
    Broadcast,
    /// Cooperative matrices of 8 x 8 x 8, for f16.
    Coop8,
    /// Cooperative matrices of 16 x 16 x 16, for f16.
    Coop16,
}

impl KernelTier {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Tile,
        Self::Rows,
        Self::Broadcast,
        Self::Coop8,
        Self::Coop16,
    ];

    /// The tier of such a name, as it is printed.
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

    /// The tier of kernels with such matrices.
    pub fn of_matrix(matrix: CooperativeMatrix) -> Self {
        match matrix.size {
            8 => Self::Coop8,
            _ => Self::Coop16,
        }
    }

    /// Whether it multiplies cooperative matrices.
    pub fn is_cooperative(self) -> bool {
        matches!(self, Self::Coop8 | Self::Coop16)
    }

    /// Whether a device with `caps` runs kernels of the tier.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] with the reason why it does not.
    pub fn check(self, caps: &DeviceCaps) -> Result<()> {
        let refused = |given: String, need| {
            Err(Error::InvalidConfig {
                what: "tier of the kernels",
                given: format!("{self}, but {given}"),
                need,
            })
        };
        match (self, &caps.cooperative_matrix, caps.processor) {
            (Self::Tile, ..) | (Self::Rows, _, Processor::Cpu { .. }) => Ok(()),
            (Self::Rows, _, Processor::Gpu) => refused(
                "the device is a GPU".to_owned(),
                "tile, coop8 or coop16 on a GPU",
            ),
            (Self::Broadcast, _, processor) if processor.has_broadcasts() => Ok(()),
            (Self::Broadcast, ..) => refused(
                "the device is no CPU with subgroups of 8 lanes".to_owned(),
                "a tier that the device has",
            ),
            (Self::Coop8 | Self::Coop16, Ok(matrix), _) if Self::of_matrix(*matrix) == self => {
                Ok(())
            }
            (Self::Coop8 | Self::Coop16, Ok(matrix), _) => refused(
                format!("the device has {matrix}"),
                "the size of its matrices",
            ),
            (Self::Coop8 | Self::Coop16, Err(reason), _) => {
                refused(reason.to_string(), "a tier without cooperative matrices")
            }
        }
    }
}

impl fmt::Display for KernelTier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
