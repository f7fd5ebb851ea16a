//! Backward attention on software drivers.
//!
//! In the `rows` tier each lane owns rows (or keys), and all lanes of a workgroup read the same staged vectors in a step. In the
//! `broadcast` tier the gradients are matrix products:
//!
//! ```text
//! weights    p and ds of a window of rows and keys, as two matrices in a buffer of their own
//! gradients  dq = ds k      dk = ds^T q      dv = p^T dout      of that window, added to those of other windows
//! ```
//! After the sweep this computes the scores once, and does 3.5 times the operations of the forward. The other tiers compute them
//! twice, for dq and for dk with dv, and do 4.5 times the operations. The window bounds the size of the buffer, whatever the length
//! of the sequence. docs/performance.md says what else was tried.

use super::{BROADCAST_LANES, LaneGroups};
use crate::device::{DeviceCaps, Processor};
use crate::error::{Error, Result};
use crate::kernels::family::invalid;
use crate::kernels::{Fields, Pass, Segments};

/// Most groups of lanes in a workgroup of the `rows` tier.
const MOST_LANE_GROUPS: u32 = 16;

/// Largest head size of the `rows` tier, in elements: it unrolls loops over the columns, which takes long to compile.
pub(in crate::kernels) const MOST_ROWS_HEAD_DIM: u32 = 128;

/// Rows (or keys) that a lane owns. Fewer for wide heads, because the unrolled code grows with rows times elements.
fn vectors_per_lane(head_dim: u32) -> u32 {
    (256 / head_dim).clamp(1, 4)
}

/// Rows (or keys) that one workgroup of the `rows` tier computes.
pub(in crate::kernels) fn rows(lanes: LaneGroups, head_dim: u32) -> u32 {
    vectors_per_lane(head_dim) * lanes.threads()
}

/// The workgroup of the `rows` tier for these segments: no larger than the rows of a segment, because lanes without a row cost as
/// much as others.
pub(in crate::kernels) fn fitting(segments: &Segments, caps: &DeviceCaps) -> LaneGroups {
    let largest = LaneGroups::most(caps, MOST_LANE_GROUPS);
    let rows_per_group = vectors_per_lane(segments.head_dim) * largest.lanes;
    let fitting = segments.rows.div_ceil(rows_per_group);
    LaneGroups {
        groups: fitting.next_power_of_two().min(largest.groups),
        ..largest
    }
}

/// Fields of the `rows` tier.
pub(in crate::kernels) fn fields(lanes: LaneGroups, head_dim: u32) -> Fields {
    Fields::new()
        .with("lanes", lanes.lanes)
        .with("lane_groups", lanes.groups)
        .with("vectors_per_lane", vectors_per_lane(head_dim))
}

/// Bytes of workgroup memory of the `rows` tier: four staged vectors of two operands, a flag for each, and in the pass for dk and
/// dv the statistics of the staged rows.
pub(in crate::kernels) fn workgroup_memory_bytes(head_dim: u32, pass: Pass) -> u32 {
    let row_stats = if pass == Pass::DkDv { 12 } else { 0 };
    4 * (2 * head_dim * 4 + 4 + row_stats)
}

/// Most rows, and most keys, of a window. Larger windows need fewer dispatches, smaller ones less memory. Other sizes were not measured.
const MOST_WINDOW_SIDE: u32 = 1024;

/// Most bytes of weights in a dispatch, over all its items, segments and heads.
const MOST_BYTES: u64 = 16 << 20;

/// How the kernels of the `broadcast` tier divide their work: each lane owns rows, and subgroup operations hand the other factor
/// from lane to lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WeightsTile {
    /// Rows that a lane owns, 4 or 8.
    pub rows: u32,
    /// Elements of each sum that a step adds, 4 or 8.
    pub depth: u32,
}

impl WeightsTile {
    /// The tile for heads of `head_dim` on a device with `caps`; docs/performance.md has the figures.
    pub(crate) fn choose(head_dim: u32, caps: &DeviceCaps) -> Self {
        match caps.processor {
            Processor::Cpu {
                uniform_loads: true,
                ..
            } => Self {
                rows: 8,
                depth: if head_dim.is_multiple_of(8) { 8 } else { 4 },
            },
            _ => Self { rows: 4, depth: 4 },
        }
    }

    /// Rows of a workgroup; also the keys of the weights that a workgroup computes.
    pub fn side(self) -> u32 {
        BROADCAST_LANES * self.rows
    }

    /// Keys of the weights that a workgroup computes, in vec4.
    fn key_vec4s(self) -> u32 {
        self.side() / 4
    }

    /// Columns of a gradient that a workgroup computes, in vec4: all columns of a head, unless there are too many.
    fn column_vec4s(self, head_dim: u32) -> u32 {
        (head_dim / 4).next_multiple_of(2).min(self.key_vec4s())
    }

    /// Number of workgroups that the columns of a gradient are divided among.
    pub(crate) fn column_tiles(self, head_dim: u32) -> u32 {
        (head_dim / 4).div_ceil(self.column_vec4s(head_dim))
    }

    /// Bytes of both matrices (p and ds) of `rows` rows and `keys` keys, in the layout of backward_window.wgsl: rows and keys are
    /// padded to whole tiles, and the stride of a row is an odd number of vec4.
    pub(crate) fn weights_bytes(self, rows: u32, keys: u32) -> u64 {
        let padded = |length: u32| u64::from(length.next_multiple_of(self.side()));
        2 * padded(rows) * (padded(keys) + 4) * 4
    }

    /// Most bytes of weights in a dispatch on a device with `caps`.
    pub(crate) fn most_bytes(caps: &DeviceCaps) -> u64 {
        MOST_BYTES
            .min(caps.max_binding_bytes)
            .min(caps.max_buffer_bytes)
    }

    /// Most rows, and most keys, of a window on a device with `caps`.
    pub(crate) fn window_side(self, caps: &DeviceCaps) -> u32 {
        let fits = |side: &u32| self.weights_bytes(*side, *side) <= Self::most_bytes(caps);
        let sides = (1..=MOST_WINDOW_SIDE / self.side()).map(|tiles| tiles * self.side());
        sides.rev().find(fits).unwrap_or(self.side())
    }

    /// Whether kernels with this tile run for heads of `head_dim` on a device with `caps`.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] for numbers that no device runs, [`Error::BindingTooSmall`] when no binding covers the weights of one tile.
    pub(crate) fn check(self, head_dim: u32, caps: &DeviceCaps) -> Result<()> {
        if ![4, 8].contains(&self.rows) {
            return invalid("rows of a lane of the kernel", self.rows, "4 or 8");
        }
        if ![4, 8].contains(&self.depth) || !head_dim.is_multiple_of(self.depth) {
            return invalid(
                "elements in a step of the kernel",
                self.depth,
                "4, or 8 where that divides the heads' elements",
            );
        }
        let bytes = self.weights_bytes(self.side(), self.side());
        if bytes > Self::most_bytes(caps) {
            return Err(Error::BindingTooSmall {
                what: "weights".into(),
                requested_bytes: bytes,
                limit_bytes: Self::most_bytes(caps),
            });
        }
        Ok(())
    }

    /// Fields of the kernel of a pass.
    pub(in crate::kernels) fn fields(self, head_dim: u32, pass: Pass) -> Fields {
        let (vec4s, gradient) = match pass {
            Pass::Dq => (self.column_vec4s(head_dim), Some("dq")),
            Pass::Dk => (self.column_vec4s(head_dim), Some("dk")),
            Pass::Dv => (self.column_vec4s(head_dim), Some("dv")),
            // Scores: the columns are keys, and the sums run along the stored rows of both factors.
            _ => (self.key_vec4s(), None),
        };
        let fields = Fields::new()
            .with("rows", self.rows)
            .with("vec4s", vec4s)
            .with("depth", self.depth)
            .with("transpose_a", matches!(pass, Pass::Dk | Pass::Dv))
            .with("transpose_b", gradient.is_none());
        match gradient {
            Some(gradient) => fields.with("gradient", gradient),
            None => fields,
        }
    }
}
