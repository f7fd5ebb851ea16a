//! Kernels that software drivers alone run, which execute shaders on a CPU in vectors of lanes. What suits them (rows in registers,
//! every index a constant, values handed from lane to lane) suits no GPU. Their shaders are in `shaders/software`.

pub mod attention_backward;
pub(super) mod attention_forward;
pub mod matmul;

use super::family::invalid;
use crate::device::{DeviceCaps, Processor};
use crate::error::Result;

/// Lanes of a subgroup that hand values over, which is a workgroup of the kernels with broadcasts of products.
pub(super) const BROADCAST_LANES: u32 = 8;

/// Lanes of a workgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LaneGroups {
    /// Lanes of a group: the adapter's vector width in floats.
    pub lanes: u32,
    /// Groups that share what is staged.
    pub groups: u32,
}

impl LaneGroups {
    /// As many groups as there can be, `most` at most, on a device with `caps`.
    pub(super) fn most(caps: &DeviceCaps, most: u32) -> Self {
        let lanes = match caps.processor {
            Processor::Cpu { lanes, .. } => lanes.max(1),
            Processor::Gpu => 32,
        };
        Self {
            lanes,
            groups: (256 / lanes).clamp(1, most),
        }
    }

    /// Lanes of all groups.
    pub fn threads(self) -> u32 {
        self.lanes * self.groups
    }

    /// Whether a workgroup can have them.
    pub(super) fn check(self) -> Result<()> {
        if self.lanes == 0 || self.lanes > 64 {
            return invalid("lanes of the kernel", self.lanes, "1 to 64");
        }
        if self.groups == 0 || self.lanes * self.groups.min(256) > 256 {
            return invalid(
                "groups of lanes of the kernel",
                self.groups,
                "at least 1, and not above 256 lanes together",
            );
        }
        Ok(())
    }
}
