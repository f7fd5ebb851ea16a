//! Forward attention on software drivers: lanes own rows, and all of a workgroup's meet the same staged keys in a step.
//!
//! What limits these kernels is how fast instructions arrive and how long drivers compile what is unrolled; docs/performance.md has
//! what was tried.

use super::{BROADCAST_LANES, LaneGroups};
use crate::device::DeviceCaps;
use crate::kernels::{Fields, Segments};

/// Groups of lanes that share the staged keys in the `rows` tier, at most.
const MOST_LANE_GROUPS: u32 = 32;

/// The same of the `broadcast` tier.
const BROADCAST_LANE_GROUPS: u32 = 16;

/// How a staged key reaches all lanes.
#[derive(Clone, Copy, PartialEq)]
pub(in crate::kernels) enum Handed {
    /// Each lane loads it itself: `forward_rows`.
    Loaded,
    /// One lane loads it and hands it on: `forward_broadcast`.
    Broadcast,
}

impl Handed {
    /// Keys of a step.
    fn keys(self) -> u32 {
        match self {
            Self::Loaded => 4,
            Self::Broadcast => 8,
        }
    }

    /// Rows of a lane: what is compiled grows with the product of rows and elements.
    fn rows_per_lane(self, head_dim: u32) -> u32 {
        let most = match self {
            Self::Loaded => 256,
            // What is compiled on older drivers takes seconds for each row.
            Self::Broadcast => 192,
        };
        (most / head_dim).clamp(1, 4)
    }

    /// Rows that one workgroup computes.
    pub fn rows(self, lanes: LaneGroups, head_dim: u32) -> u32 {
        self.rows_per_lane(head_dim) * lanes.threads()
    }

    /// The tile for such segments: about half of their rows or less, so that there is work for several cores.
    pub fn fitting(self, segments: &Segments, caps: &DeviceCaps) -> LaneGroups {
        if self == Self::Broadcast {
            // One kernel for all segments, for each compiles for many seconds.
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

    /// Keys and values of a step, and a flag.
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
