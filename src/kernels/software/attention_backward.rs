//! Backward attention on software drivers.
//!
//! In the `rows` tier lanes own rows, or keys, and all of a workgroup's meet the same staged vectors in a step. In the `broadcast` tier
//! gradients are products of matrices:
//!
//! ```text
//! weights    p and ds of a window of rows and keys, as two matrices in a buffer of the backward's own
//! gradients  dq = ds k      dk = ds^T q      dv = p^T dout      of that window, joined with what other windows gave
//! ```
//! After the sweep the scores are computed once, not twice as where dq and dk, dv are passes of their own: 3.5 times the operations
//! of the forward are done, not 4.5. The windows bound the buffer, whatever the length of the sequence. docs/performance.md has what
//! was tried.

use super::{BROADCAST_LANES, LaneGroups};
use crate::device::{DeviceCaps, Processor};
use crate::error::{Error, Result};
use crate::kernels::family::invalid;
use crate::kernels::{Fields, Pass, Segments};

/// Groups of lanes that share the staged vectors in the `rows` tier, at most.
const MOST_LANE_GROUPS: u32 = 16;

/// Largest heads of the `rows` tier, whose unrolled columns compile for long.
pub(in crate::kernels) const MOST_ROWS_HEAD_DIM: u32 = 128;

/// Rows, or keys, of a lane: what is compiled grows with the product of them and of elements.
fn vectors_per_lane(head_dim: u32) -> u32 {
    (256 / head_dim).clamp(1, 4)
}

/// Rows, or keys, that one workgroup of the `rows` tier computes.
pub(in crate::kernels) fn rows(lanes: LaneGroups, head_dim: u32) -> u32 {
    vectors_per_lane(head_dim) * lanes.threads()
}

/// The tile of the `rows` tier for such segments: no larger than they have rows, for lanes without a row cost what others do.
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

/// Vectors of two operands and a flag each; for keys also the statistics of their rows.
pub(in crate::kernels) fn workgroup_memory_bytes(head_dim: u32, pass: Pass) -> u32 {
    let row_stats = if pass == Pass::DkDv { 12 } else { 0 };
    4 * (2 * head_dim * 4 + 4 + row_stats)
}

/// Rows, and keys, of a window at most. Larger ones have fewer dispatches, smaller ones take less memory; other sides were not
/// measured.
const MOST_WINDOW_SIDE: u32 = 1024;

/// Bytes of weights at most, of all items, segments and heads in a dispatch.
const MOST_BYTES: u64 = 16 << 20;

/// How these kernels lay their work out: a lane owns rows, and subgroup operations hand it the other factor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WeightsTile {
    /// Rows of a lane, 4 or 8.
    pub rows: u32,
    /// Elements of a sum in a step, 4 or 8.
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

    /// Rows of a workgroup, and keys of its weights.
    pub fn side(self) -> u32 {
        BROADCAST_LANES * self.rows
    }

    /// The vec4s of keys in the weights of a workgroup.
    fn key_vec4s(self) -> u32 {
        self.side() / 4
    }

    /// The vec4s of columns of a gradient in a workgroup: all of them where they are few.
    fn column_vec4s(self, head_dim: u32) -> u32 {
        (head_dim / 4).next_multiple_of(2).min(self.key_vec4s())
    }

    /// Workgroups beside each other in a row of a gradient.
    pub(crate) fn column_tiles(self, head_dim: u32) -> u32 {
        (head_dim / 4).div_ceil(self.column_vec4s(head_dim))
    }

    /// Bytes of the weights of `rows` rows and `keys` keys. As in backward_window.wgsl: tiles that are written
    /// whole, rows that are an odd number of vec4s apart.
    pub(crate) fn weights_bytes(self, rows: u32, keys: u32) -> u64 {
        let padded = |length: u32| u64::from(length.next_multiple_of(self.side()));
        2 * padded(rows) * (padded(keys) + 4) * 4
    }

    /// Bytes of weights of a dispatch at most.
    pub(crate) fn most_bytes(caps: &DeviceCaps) -> u64 {
        MOST_BYTES
            .min(caps.max_binding_bytes)
            .min(caps.max_buffer_bytes)
    }

    /// Rows, and keys, of a window.
    pub(crate) fn window_side(self, caps: &DeviceCaps) -> u32 {
        let fits = |side: &u32| self.weights_bytes(*side, *side) <= Self::most_bytes(caps);
        let sides = (1..=MOST_WINDOW_SIDE / self.side()).map(|tiles| tiles * self.side());
        sides.rev().find(fits).unwrap_or(self.side())
    }

    /// Whether it is a tile, for heads of `head_dim`, with weights that a binding covers.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] when it is not, [`Error::BindingTooSmall`] when no binding covers the weights of one tile.
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
            // Scores: keys are the columns, and both factors' sums run along their rows.
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
