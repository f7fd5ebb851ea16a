//! Kernels for software drivers only, which run shaders on a CPU in vectors of lanes. What makes them fast there (whole rows in
//! registers, constant indices everywhere, values handed from lane to lane) suits no GPU. Their shaders are in `shaders/software`.

pub mod attention_backward;
pub(super) mod attention_forward;
pub mod matmul;

use super::family::invalid;
use crate::device::{DeviceCaps, Processor};
use crate::error::Result;

/// Lanes of a subgroup in the kernels of the `broadcast` tier. In those for matrix products it is the whole workgroup.
pub(super) const BROADCAST_LANES: u32 = 8;

/// The lanes of a workgroup, in groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LaneGroups {
    /// Lanes of a group: the number of floats in a vector of the CPU.
    pub lanes: u32,
    /// Groups of a workgroup. They share the staged data.
    pub groups: u32,
}

impl LaneGroups {
    /// As many groups as fit in a workgroup of 256 lanes on a device with `caps`, and at most `most`.
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

    /// Lanes of all groups together.
    pub fn threads(self) -> u32 {
        self.lanes * self.groups
    }

    /// Whether a workgroup can have these lanes.
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
