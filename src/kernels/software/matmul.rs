//! Matrix products on software drivers. docs/performance.md says what was tried.

use super::{BROADCAST_LANES, LaneGroups};
use crate::device::{DeviceCaps, Processor};
use crate::error::{Error, Result};
use crate::kernels::Fields;

/// Most columns of a `broadcast` tile, in vec4. Wider kernels are slower and take long to compile.
const MOST_VEC4S: u32 = 32;

/// The workgroup of the `rows` tier for a result with `columns` columns: as few tiles side by side as possible, all of about the
/// same width. Numbers of groups are multiples of 4, because each number is another kernel to compile.
pub(in crate::kernels) fn rows(columns: u64, caps: &DeviceCaps) -> LaneGroups {
    let LaneGroups {
        lanes,
        groups: most,
    } = LaneGroups::most(caps, 32);
    let groups = columns.div_ceil(u64::from(4 * lanes)).max(1);
    let even = groups.div_ceil(groups.div_ceil(u64::from(most)));
    LaneGroups {
        lanes,
        groups: (even as u32).next_multiple_of(4).min(most),
    }
}

/// Fields of the `rows` tier.
pub(in crate::kernels) fn rows_fields(lanes: LaneGroups) -> Fields {
    Fields::new()
        .with("lanes", lanes.lanes)
        .with("lane_groups", lanes.groups)
}

/// How the kernels of the `broadcast` tier divide their work: each lane owns rows, and subgroup operations hand the right factor
/// from lane to lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BroadcastTile {
    /// Rows that a lane owns, 4 or 8.
    pub rows: u32,
    /// Columns that a workgroup computes, in vec4.
    pub vec4s: u32,
    /// Elements of each sum that a step adds, 4 or 8. The length of the sum must be a multiple of it.
    pub depth: u32,
}

impl BroadcastTile {
    /// A tile that is fast on a device with `caps` and compiles in a second or two.
    pub(in crate::kernels) fn choose(caps: &DeviceCaps) -> Self {
        match caps.processor {
            Processor::Cpu {
                uniform_loads: true,
                ..
            } => Self {
                rows: 8,
                vec4s: 12,
                depth: 8,
            },
            _ => Self {
                rows: 4,
                vec4s: 6,
                depth: 4,
            },
        }
    }

    /// The tile for sums of `inner` elements, a multiple of 4: the same, with a smaller `depth` if necessary.
    pub(in crate::kernels) fn for_sums_of(self, inner: u64) -> Self {
        match inner.is_multiple_of(u64::from(self.depth)) {
            true => self,
            false => Self { depth: 4, ..self },
        }
    }

    pub(in crate::kernels) fn check(self) -> Result<()> {
        let Self { rows, vec4s, depth } = self;
        let even = (2..=MOST_VEC4S).contains(&vec4s) && vec4s.is_multiple_of(2);
        match even && [rows, depth].iter().all(|number| [4, 8].contains(number)) {
            true => Ok(()),
            false => Err(Error::InvalidConfig {
                what: "kernel of a product",
                given: format!("{self:?}"),
                need: "4 or 8 rows and elements a step, 2 to 32 vec4s in pairs",
            }),
        }
    }

    /// Rows and columns that one workgroup computes.
    pub(in crate::kernels) fn tile(self) -> [u64; 2] {
        [BROADCAST_LANES * self.rows, 4 * self.vec4s].map(u64::from)
    }

    pub(in crate::kernels) fn fields(self) -> Fields {
        Fields::new()
            .with("rows", self.rows)
            .with("vec4s", self.vec4s)
            .with("depth", self.depth)
    }
}
