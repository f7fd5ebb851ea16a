//! The shapes of the backward kernels and which one suits a device.

use std::fmt;

use super::forward::LANE_GROUPS;
use crate::config::MAX_HEAD_DIM;
use crate::error::{Error, Result};
use crate::plan::{DeviceFacts, Pass, Processor};

/// How the backward kernels lay their work out. All compute the same; see the shader files for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BackwardShape {
    /// Tiles of 32 rows by 32 keys in workgroup memory: GPUs, older software drivers.
    Tile,
    /// Two rows (or keys) a lane in registers, what it meets in workgroup memory: CPUs whose driver loads shared addresses
    /// once.
    Rows,
}

impl BackwardShape {
    /// All shapes.
    pub const ALL: [Self; 2] = [Self::Tile, Self::Rows];

    /// Name of the shader of [`Pass::Means`].
    pub fn means_name(self) -> &'static str {
        match self {
            Self::Tile => "backward_means_tile",
            Self::Rows => "backward_means_rows",
        }
    }

    /// Name of the shader of [`Pass::Dq`].
    pub fn dq_name(self) -> &'static str {
        match self {
            Self::Tile => "backward_dq_tile",
            Self::Rows => "backward_dq_rows",
        }
    }

    /// Name of the shader of [`Pass::DkDv`].
    pub fn dkdv_name(self) -> &'static str {
        match self {
            Self::Tile => "backward_dkdv_tile",
            Self::Rows => "backward_dkdv_rows",
        }
    }
}

/// The backward kernels with their constants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BackwardVariant {
    /// The shape.
    pub shape: BackwardShape,
    /// Elements in one head.
    pub head_dim: u32,
    /// Lanes of a group of the [`Rows`](BackwardShape::Rows) shape; the other has a fixed number.
    pub lanes: u32,
}

impl BackwardVariant {
    /// The shape that measured best on such a device; see the README's table.
    pub fn choose(head_dim: u32, facts: &DeviceFacts) -> Self {
        let shape = match facts.processor {
            // Above, the compile time of the unrolled columns grows beyond what it saves.
            Processor::Cpu {
                uniform_loads: true,
                ..
            } if head_dim <= 96 => BackwardShape::Rows,
            Processor::Gpu | Processor::Cpu { .. } => BackwardShape::Tile,
        };
        Self::with_shape(shape, head_dim, facts)
    }

    /// A given shape on a device.
    pub fn with_shape(shape: BackwardShape, head_dim: u32, facts: &DeviceFacts) -> Self {
        Self {
            shape,
            head_dim,
            lanes: match facts.processor {
                Processor::Cpu { lanes, .. } => lanes,
                Processor::Gpu => 32,
            },
        }
    }

    /// Rows, or keys, that one workgroup computes.
    pub fn tile(&self) -> u32 {
        match self.shape {
            BackwardShape::Tile => 32,
            BackwardShape::Rows => 2 * self.lanes * LANE_GROUPS,
        }
    }

    /// Bytes of workgroup memory in a pass. A test compares them with the shader's variables.
    pub fn workgroup_memory_bytes(&self, pass: Pass) -> u32 {
        match self.shape {
            // Chunks of 32 vectors of two operands, 9 vec4 each; sums of 64 threads.
            BackwardShape::Tile => {
                let sums = if pass == Pass::Means { 2 * 64 * 16 } else { 0 };
                2 * 32 * 9 * 16 + sums
            }
            // As many vectors of two operands as fit in 15 KiB, at most 32, in fours; for keys also their rows' terms.
            BackwardShape::Rows => {
                let columns = self.head_dim / 4;
                let staged = 32.min(480 / columns / 4 * 4);
                let terms = if pass == Pass::DkDv { 32 * 8 } else { 0 };
                2 * staged * columns * 16 + terms
            }
        }
    }

    /// Constants of the shaders.
    pub fn constants(&self) -> [(&'static str, u32); 3] {
        [
            ("HEAD_DIM_VEC4", self.head_dim / 4),
            ("LANES", self.lanes),
            ("LANE_GROUPS", LANE_GROUPS),
        ]
    }

    /// Whether the kernels compute heads of `head_dim` on a device with `facts`.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] when they do not.
    pub fn check(&self, head_dim: u32, facts: &DeviceFacts) -> Result<()> {
        let invalid = |what, given: u32, need| {
            Err(Error::InvalidConfig {
                what,
                given: given.to_string(),
                need,
            })
        };
        if self.head_dim != head_dim || head_dim > MAX_HEAD_DIM {
            return invalid(
                "head_dim of the kernel",
                self.head_dim,
                "the configuration's",
            );
        }
        if self.lanes == 0 || self.lanes > 256 / LANE_GROUPS {
            return invalid("lanes of the kernel", self.lanes, "1 to 64");
        }
        let bytes = [Pass::Means, Pass::Dq, Pass::DkDv]
            .map(|pass| self.workgroup_memory_bytes(pass))
            .into_iter()
            .fold(0, u32::max);
        if bytes > facts.max_workgroup_memory_bytes {
            return invalid(
                "workgroup memory of the kernel in bytes",
                bytes,
                "at most what the device offers",
            );
        }
        Ok(())
    }
}

impl fmt::Display for BackwardVariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.shape {
            BackwardShape::Tile => "backward_*_tile",
            BackwardShape::Rows => "backward_*_rows",
        };
        write!(f, "{name} ({} rows or keys a workgroup)", self.tile())
    }
}
