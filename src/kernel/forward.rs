//! The shapes of the forward kernel and which one suits a device.
//!
//! **What limits the software adapters** (lavapipe on 2 cores with AVX2, 2026-11-22; d = 64, share of the adapter's own
//! multiply-add ceiling of 60 GFLOP/s on Mesa 25.0.7 and 70 to 110 on 26.2.6):
//!
//! | shape | Mesa 25.0.7 | Mesa 26.2.6 |
//! |---|---|---|
//! | rows: 2 rows a lane, keys staged in workgroup memory (kept) | compiles for a minute | 14 to 19 % |
//! | rows, keys straight from storage; 1, 2, 4 or 8 rows a lane; 1, 2 or 4 keys a step | - | 7 to 16 % |
//! | rows, staged, 4 rows a lane and 2 keys a step | 9 to 12 %, compiles for 84 s | 15 to 23 %, compiles for 9 s |
//! | rows, staged, 8 rows a lane | - | 14 to 23 %, compiles for 19 s |
//! | rows, staged, 2 rows a lane and 8 keys a step | - | 8 to 15 % |
//! | micro: 8 x 8 scores a lane, direct loads (kept) | 7 to 10 % | 6 to 11 % |
//! | tile: workgroup memory as on a GPU | 7 to 9 % | 4 to 6 % |
//!
//! A load of one vec4 takes the time of this many multiply-adds of a vec4 at the ceiling: from storage 30 on 25.0 (a loop
//! over the lanes, also for an address that all share) and 5 on 26.2 for a shared address, 29 for addresses of their own;
//! from workgroup memory, shared address, 11 and 4. On 26.2 loads of shared addresses overlap with arithmetic: in a loop that
//! does nothing else, 8 rows a
//! lane reach the ceiling. In the kernel they do not. Scores alone run at half the ceiling; the second product takes three
//! quarters of the time. There the driver keeps an execution mask in every loop and blends each of the output's registers
//! with it on every step, through the stack; yet 8 keys a step, which blends a quarter as often, runs at 8 %, so that is not
//! the whole reason. Runtime checks switched off changed nothing: the bounds checks are the driver's.

use std::fmt;

use crate::config::MAX_HEAD_DIM;
use crate::error::{Error, Result};
use crate::plan::{DeviceFacts, Processor};
use crate::tuning::Choice;
use crate::tuning::because::{GPU, LOADS_PER_LANE, UNIFORM_LOADS, WIDE_HEADS};

/// Groups of lanes that share the staged keys in the [`Rows`](ForwardShape::Rows) shape. Measured with 1, 2, 4 and 8 on
/// Mesa 26.2: 12, 18, 20 and 16 % of the ceiling.
pub(super) const LANE_GROUPS: u32 = 4;

/// How the forward kernel lays its work out. All compute the same; see the shader files for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ForwardShape {
    /// Tiles of keys, values and probabilities in workgroup memory: GPUs.
    Tile,
    /// Two rows a lane, output in registers, keys in workgroup memory: CPUs whose driver loads shared addresses once.
    Rows,
    /// 8 x 8 scores a lane with direct loads: older software drivers.
    Micro,
}

impl ForwardShape {
    /// All shapes.
    pub const ALL: [Self; 3] = [Self::Tile, Self::Rows, Self::Micro];

    /// Name of the shader.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tile => "forward_tile",
            Self::Rows => "forward_rows",
            Self::Micro => "forward_micro",
        }
    }
}

/// A forward kernel with its constants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ForwardVariant {
    /// The shape.
    pub shape: ForwardShape,
    /// Elements in one head.
    pub head_dim: u32,
    /// Lanes of a workgroup of the [`Rows`](ForwardShape::Rows) shape; the others have a fixed number.
    pub lanes: u32,
}

impl ForwardVariant {
    /// The shape that measured best on such a device; see the README's table.
    pub fn choose(head_dim: u32, facts: &DeviceFacts) -> Self {
        Self::choice(head_dim, facts).variant
    }

    /// As [`choose`](Self::choose), with the reason.
    pub fn choice(head_dim: u32, facts: &DeviceFacts) -> Choice<Self> {
        let (shape, because) = match facts.processor {
            Processor::Gpu => (ForwardShape::Tile, GPU),
            Processor::Cpu {
                uniform_loads: true,
                ..
            } if head_dim <= 96 => (ForwardShape::Rows, UNIFORM_LOADS),
            Processor::Cpu {
                uniform_loads: true,
                ..
            } => (ForwardShape::Micro, WIDE_HEADS),
            Processor::Cpu { .. } => (ForwardShape::Micro, LOADS_PER_LANE),
        };
        Choice::adapter(Self::with_shape(shape, head_dim, facts), because)
    }

    /// A given shape on a device.
    pub fn with_shape(shape: ForwardShape, head_dim: u32, facts: &DeviceFacts) -> Self {
        Self {
            shape,
            head_dim,
            lanes: match facts.processor {
                Processor::Cpu { lanes, .. } => lanes,
                Processor::Gpu => 32,
            },
        }
    }

    /// Rows that one workgroup computes.
    pub fn rows_per_workgroup(&self) -> u32 {
        match self.shape {
            ForwardShape::Tile if self.head_dim <= 128 => 64,
            ForwardShape::Tile => 32,
            ForwardShape::Rows => 2 * self.lanes * LANE_GROUPS,
            ForwardShape::Micro => 32,
        }
    }

    /// Bytes of workgroup memory. A test compares them with the shader's variables.
    pub fn workgroup_memory_bytes(&self) -> u32 {
        match self.shape {
            // A chunk of q or weights (9 vec4 a row), a chunk of k or v (9 vec4 for 32 keys), maxima (2 vec4 a row).
            ForwardShape::Tile => (self.rows_per_workgroup() * (9 + 2) + 32 * 9) * 16,
            // As many keys and values as fit in 16 KiB, at most 32, in fours.
            ForwardShape::Rows => {
                let columns = self.head_dim / 4;
                let tile_keys = 32.min(512 / columns / 4 * 4);
                2 * tile_keys * columns * 16
            }
            // Weights of 32 rows and 64 keys, maxima.
            ForwardShape::Micro => 32 * 64 * 4 + 64 * 16,
        }
    }

    /// Constants of the shader.
    pub fn constants(&self) -> [(&'static str, u32); 3] {
        [
            ("HEAD_DIM_VEC4", self.head_dim / 4),
            ("LANES", self.lanes),
            ("LANE_GROUPS", LANE_GROUPS),
        ]
    }

    /// Whether the kernel computes heads of `head_dim` on a device with `facts`.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] when it does not.
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
        if self.workgroup_memory_bytes() > facts.max_workgroup_memory_bytes {
            return invalid(
                "workgroup memory of the kernel in bytes",
                self.workgroup_memory_bytes(),
                "at most what the device offers",
            );
        }
        Ok(())
    }
}

impl fmt::Display for ForwardVariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} ({} rows a workgroup, {} bytes of workgroup memory)",
            self.shape.name(),
            self.rows_per_workgroup(),
            self.workgroup_memory_bytes()
        )
    }
}
