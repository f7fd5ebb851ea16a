//! The shapes of the backward kernels and which one suits a device.
//!
//! **What limits the software adapters** (lavapipe of Mesa 26.2.6 with LLVM 22.1.8 on 2 cores of an AMD EPYC, 2026-11-24;
//! dense, d = 64, N = 1024, share of the adapter's own multiply-add ceiling, operations counted as 2.5 times the forward's; the
//! two passes do 3.5 times, so that 71 % is the most there is):
//!
//! | shape | share | first call |
//! |---|---|---|
//! | tile: workgroup memory as on a GPU (d = 128) | 5 % | 1 s |
//! | rows: 2 vectors a lane, a loop over 32 staged ones in fours | 15 % | 2.6 s |
//! | 2 vectors a lane, 8 staged ones a step, every index a constant, a barrier before the sums | 21 % | 8 s |
//! | 4 vectors a lane, 4 staged ones a step; 4, 8, 16 groups of lanes | 24, 31, 37 to 40 % | 14 s |
//! | the last with a barrier between the two products, unrolled in `source.rs` (kept) | 38 to 44 % | 5 s |
//! | the same at d = 16, 32, 48, 128 | 36, 41, 40, 35 % | 1, 2, 4, 15 s |
//!
//! In the loop the driver computed the addresses of all that is staged, with their bounds checks, and kept them on the
//! stack, and it kept what the products had loaded for the sums, again on the stack. What is left, by samples of the
//! processor: products a quarter of the time, at nearly the ceiling's speed; sums half, two to three times slower, because
//! each of their 512 vectors (and those of the other 15 groups, more than the nearest cache holds) is loaded, blended with
//! the execution mask and stored for four fma; staging a sixth, in gathers and scatters of 8 lanes. Eight staged vectors a step
//! would halve the traffic of the sums and double the code, which compiles more than twice as long.
//! Causal calls run at 26 %: a tile of 512 rows computes what its diagonal drops. Groups of contiguous rows that skip what
//! they do not see, as in the forward, brought no more there and cost a third of full calls (26 %, by processor time,
//! against 37 %); the lane's number as a variable of the loop, as in the forward, changed nothing.
//!
//! On Mesa 25.0.7 with LLVM 15.0.6 the rows were not timed: tests with heads of 8 compiled for over 8 minutes. The tile runs.

use std::fmt;

use crate::config::{DilatedAttentionConfig, MAX_HEAD_DIM};
use crate::error::{Error, Result};
use crate::kernel::coop::CoopTile;
use crate::kernel::{KernelTier, Storage};
use crate::plan::{DeviceFacts, Pass, Processor};
use crate::tuning::Choice;
use crate::tuning::because::{GPU, LOADS_PER_LANE, MATRICES, UNIFORM_LOADS, WIDE_HEADS};

/// Groups of lanes that share the staged vectors in the [`Rows`](BackwardShape::Rows) shape, at most.
const MOST_LANE_GROUPS: u32 = 16;

/// Largest heads that the kernels with cooperative matrices compute: two operands and up to two sums are kept in registers.
const MOST_COOP_HEAD_DIM: u32 = 128;

/// Vectors that a subgroup of these owns.
const COOP_ROWS: u32 = 16;

/// How the backward kernels lay their work out. All compute the same; see the shader files for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BackwardShape {
    /// Tiles of 32 rows by 32 keys in workgroup memory: GPUs, older software drivers.
    Tile,
    /// Four rows (or keys) a lane, what they meet in workgroup memory: CPUs whose driver loads shared addresses once.
    Rows,
    /// Cooperative matrices, for tensors stored as f16: GPUs that have them.
    Coop(CoopTile),
}

impl BackwardShape {
    /// All shapes that need no feature of the device.
    pub const ALL: [Self; 2] = [Self::Tile, Self::Rows];

    /// Whether it multiplies cooperative matrices.
    pub fn is_cooperative(self) -> bool {
        matches!(self, Self::Coop(_))
    }

    /// Name of the shader of [`Pass::Means`], which has no form with cooperative matrices.
    pub fn means_name(self) -> &'static str {
        match self {
            Self::Tile | Self::Coop(_) => "backward_means_tile",
            Self::Rows => "backward_means_rows",
        }
    }

    /// Name of the shader of [`Pass::Dq`].
    pub fn dq_name(self) -> &'static str {
        match self {
            Self::Tile => "backward_dq_tile",
            Self::Rows => "backward_dq_rows",
            Self::Coop(_) => "backward_dq_coop",
        }
    }

    /// Name of the shader of [`Pass::DkDv`].
    pub fn dkdv_name(self) -> &'static str {
        match self {
            Self::Tile => "backward_dkdv_tile",
            Self::Rows => "backward_dkdv_rows",
            Self::Coop(_) => "backward_dkdv_coop",
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
    /// Groups of lanes that share what is staged, in the same shape.
    pub lane_groups: u32,
    /// How inputs and gradients are stored.
    pub storage: Storage,
}

impl BackwardVariant {
    /// The shape that measured best on such a device; see the README's table. Its tile is no larger than the segments of
    /// `config` have rows, for lanes without a row cost what others do.
    pub fn choose(config: &DilatedAttentionConfig, storage: Storage, facts: &DeviceFacts) -> Self {
        Self::choice(config, storage, facts).variant
    }

    /// As [`choose`](Self::choose), with the reason.
    pub fn choice(
        config: &DilatedAttentionConfig,
        storage: Storage,
        facts: &DeviceFacts,
    ) -> Choice<Self> {
        let wanted = facts
            .tier
            .map(|tier| Self::of_tier(tier, config, storage, facts));
        if let Some(Ok(variant)) = wanted {
            return variant.into();
        }
        let (shape, because) = match facts.processor {
            Processor::Gpu => match Self::cooperative(config.head_dim(), storage, facts) {
                Ok(variant) => return Choice::adapter(variant, MATRICES),
                Err(_) => (BackwardShape::Tile, GPU),
            },
            Processor::Cpu {
                uniform_loads: true,
                ..
            } if config.head_dim() <= 96 => (BackwardShape::Rows, UNIFORM_LOADS),
            Processor::Cpu {
                uniform_loads: true,
                ..
            } => (BackwardShape::Tile, WIDE_HEADS),
            Processor::Cpu { .. } => (BackwardShape::Tile, LOADS_PER_LANE),
        };
        Choice::adapter(Self::fitting(shape, config, storage, facts), because)
    }

    /// The kernels of a tier.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] with the reason why there are none for such tensors on such a device.
    pub fn of_tier(
        tier: KernelTier,
        config: &DilatedAttentionConfig,
        storage: Storage,
        facts: &DeviceFacts,
    ) -> Result<Self> {
        tier.check(facts)?;
        let fitting = |shape| Self::fitting(shape, config, storage, facts);
        let variant = match tier {
            KernelTier::Tile => fitting(BackwardShape::Tile),
            KernelTier::Rows => fitting(BackwardShape::Rows),
            KernelTier::Broadcast => {
                return Err(Error::InvalidConfig {
                    what: "tier of the backward's kernels",
                    given: tier.to_string(),
                    need: "another: it has no backward",
                });
            }
            KernelTier::Coop8 | KernelTier::Coop16 => {
                Self::cooperative(config.head_dim(), storage, facts)?
            }
        };
        variant.check(config.head_dim(), facts)?;
        Ok(variant)
    }

    /// A given shape, with a tile that fits the segments of `config`.
    pub fn fitting(
        shape: BackwardShape,
        config: &DilatedAttentionConfig,
        storage: Storage,
        facts: &DeviceFacts,
    ) -> Self {
        let largest = Self::with_shape(shape, config.head_dim(), storage, facts);
        let fitting = config
            .rows_of_shortest_segment()
            .div_ceil(4 * largest.lanes);
        Self {
            lane_groups: fitting.min(largest.lane_groups).next_power_of_two(),
            ..largest
        }
    }

    /// The kernels with cooperative matrices, with the largest tile that fits.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] with the reason why there are none for such tensors on such a device.
    pub fn cooperative(head_dim: u32, storage: Storage, facts: &DeviceFacts) -> Result<Self> {
        let matrix = CoopTile::matrix_for(storage, facts)?;
        CoopTile::check_head_dim(head_dim, MOST_COOP_HEAD_DIM)?;
        CoopTile::candidates(matrix, COOP_ROWS)
            .map(|tile| Self::with_shape(BackwardShape::Coop(tile), head_dim, storage, facts))
            .find(|variant| {
                variant.most_workgroup_memory_bytes() <= facts.max_workgroup_memory_bytes
            })
            .ok_or_else(|| CoopTile::no_room(facts))
    }

    /// The kernel of a pass: [`Pass::Means`] takes the tile where the others take cooperative matrices. It is the exception, and
    /// a third product for them.
    pub fn of_pass(self, pass: Pass) -> Self {
        match (self.shape, pass) {
            (BackwardShape::Coop(_), Pass::Means) => Self {
                shape: BackwardShape::Tile,
                ..self
            },
            _ => self,
        }
    }

    /// A given shape on a device, with its largest tile.
    pub fn with_shape(
        shape: BackwardShape,
        head_dim: u32,
        storage: Storage,
        facts: &DeviceFacts,
    ) -> Self {
        let lanes = match facts.processor {
            Processor::Cpu { lanes, .. } => lanes,
            Processor::Gpu => 32,
        };
        Self {
            shape,
            head_dim,
            lanes,
            lane_groups: (256 / lanes.max(1)).clamp(1, MOST_LANE_GROUPS),
            storage,
        }
    }

    /// Rows, or keys, that one workgroup computes.
    pub fn tile(&self) -> u32 {
        match self.shape {
            BackwardShape::Tile => 32,
            BackwardShape::Rows => 4 * self.lanes * self.lane_groups,
            BackwardShape::Coop(tile) => tile.vectors(),
        }
    }

    fn most_workgroup_memory_bytes(&self) -> u32 {
        [Pass::Means, Pass::Dq, Pass::DkDv]
            .map(|pass| self.of_pass(pass).workgroup_memory_bytes(pass))
            .into_iter()
            .fold(0, u32::max)
    }

    /// Bytes of workgroup memory in a pass. A test compares them with the shader's variables.
    pub fn workgroup_memory_bytes(&self, pass: Pass) -> u32 {
        match self.shape {
            // Chunks of 32 vectors of two operands, 9 vec4 each; sums of 64 threads.
            BackwardShape::Tile => {
                let sums = if pass == Pass::Means { 2 * 64 * 16 } else { 0 };
                2 * 32 * 9 * 16 + sums
            }
            // Four vectors of two operands; for keys also their rows' terms; a flag.
            BackwardShape::Rows => {
                let terms = if pass == Pass::DkDv { 4 * 8 } else { 0 };
                2 * 4 * self.head_dim * 4 + terms + 16
            }
            // Two operands, one or two slabs of weights; two of products; a word for each staged vector; the rows' terms.
            BackwardShape::Coop(tile) => {
                let columns = tile.column_blocks(self.head_dim) * tile.matrix.size;
                let (slabs, rows) = match pass {
                    Pass::DkDv => (2, tile.staged),
                    _ => (1, tile.vectors()),
                };
                CoopTile::halves(2 * tile.staged, columns)
                    + CoopTile::halves(slabs * tile.vectors(), tile.staged)
                    + CoopTile::floats(2 * tile.vectors(), tile.staged)
                    + 4 * tile.staged
                    + 8 * rows
            }
        }
    }

    /// Constants of the shaders.
    pub fn constants(&self) -> Vec<(&'static str, u32)> {
        match self.shape {
            BackwardShape::Coop(tile) => tile.constants(self.head_dim),
            _ => vec![
                ("HEAD_DIM_VEC4", self.head_dim / 4),
                ("LANES", self.lanes),
                ("LANE_GROUPS", self.lane_groups),
            ],
        }
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
        self.storage.check(facts)?;
        if self.lanes == 0 || self.lanes > 64 {
            return invalid("lanes of the kernel", self.lanes, "1 to 64");
        }
        if self.lane_groups == 0 || self.lanes * self.lane_groups.min(256) > 256 {
            return invalid(
                "groups of lanes of the kernel",
                self.lane_groups,
                "at least 1, and not above 256 lanes together",
            );
        }
        if let BackwardShape::Coop(tile) = self.shape {
            tile.check(self.storage, facts)?;
            CoopTile::check_head_dim(head_dim, MOST_COOP_HEAD_DIM)?;
            if tile.rows != COOP_ROWS {
                return invalid("rows of the kernel", tile.rows, "16");
            }
        }
        let bytes = self.most_workgroup_memory_bytes();
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
            BackwardShape::Coop(_) => "backward_*_coop",
        };
        write!(
            f,
            "{name} ({}, {} rows or keys a workgroup)",
            self.storage.dtype(),
            self.tile()
        )
    }
}
