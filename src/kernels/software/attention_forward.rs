//! Forward attention on software drivers: each lane owns rows, and all lanes of a workgroup read the same staged keys in a step.
//!
//! Two things limit these kernels: how fast the CPU fetches instructions, and how long drivers compile unrolled code.
//! docs/performance.md says what was tried.

use super::{BROADCAST_LANES, LaneGroups};
use crate::device::DeviceCaps;
use crate::kernels::{Fields, Segments};

/// Most groups of lanes in a workgroup of the `rows` tier.
const MOST_LANE_GROUPS: u32 = 32;

/// Groups of lanes in a workgroup of the `broadcast` tier.
const BROADCAST_LANE_GROUPS: u32 = 16;

/// How a staged key reaches all lanes.
#[derive(Clone, Copy, PartialEq)]
pub(in crate::kernels) enum Handed {
    /// Each lane loads it: `forward_rows`.
    Loaded,
    /// One lane loads it and hands it to the others: `forward_broadcast`.
    Broadcast,
}

impl Handed {
    /// Keys that are staged in a step.
    fn keys(self) -> u32 {
        match self {
            Self::Loaded => 4,
            Self::Broadcast => 8,
        }
    }

    /// Rows that a lane owns. Fewer for wide heads, because the unrolled code grows with rows times elements.
    fn rows_per_lane(self, head_dim: u32) -> u32 {
        let most = match self {
            Self::Loaded => 256,
            // Older drivers compile for seconds for each row.
            Self::Broadcast => 192,
        };
        (most / head_dim).clamp(1, 4)
    }

    /// Rows that one workgroup computes.
    pub fn rows(self, lanes: LaneGroups, head_dim: u32) -> u32 {
        self.rows_per_lane(head_dim) * lanes.threads()
    }

    /// The workgroup for these segments: about half the rows of a segment or less, so that several cores have work.
    pub fn fitting(self, segments: &Segments, caps: &DeviceCaps) -> LaneGroups {
        if self == Self::Broadcast {
            // The same kernel for all segments, because each kernel takes many seconds to compile.
            return LaneGroups {
                lanes: BROADCAST_LANES,
                groups: BROADCAST_LANE_GROUPS,
            };
        }
        let largest = LaneGroups::most(caps, MOST_LANE_GROUPS);
        let rows_per_group = self.rows_per_lane(segments.head_dim) * largest.lanes;
        let fitting = segments.rows.div_ceil(2 * rows_per_group);
        LaneGroups {
            groups: fitting.next_power_of_two().min(largest.groups),
            ..largest
        }
    }

    /// Bytes of workgroup memory: the keys and values of a step, and a flag.
    pub fn workgroup_memory_bytes(self, head_dim: u32) -> u32 {
        2 * self.keys() * head_dim * 4 + 16
    }

    pub fn fields(self, lanes: LaneGroups, head_dim: u32) -> Fields {
        Fields::new()
            .with("lanes", lanes.lanes)
            .with("lane_groups", lanes.groups)
            .with("rows_per_lane", self.rows_per_lane(head_dim))
            .with("keys", self.keys())
    }
}
