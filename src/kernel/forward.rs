//! The shapes of the forward kernel and which one suits a device.
//!
//! **What makes the software adapters fast** (lavapipe on 2 cores of an AMD EPYC with AVX-512, 8 lanes, 2026-11-24; dense,
//! 1 head of 64, N = 2048, share of the adapter's own multiply-add ceiling of 164 GFLOP/s on Mesa 26.2.6 and 87 on 25.0.7,
//! processor time of trial kernels that hold the inner loop only):
//!
//! | Mesa 26.2.6 | share |
//! |---|---|
//! | a loop over staged keys, two rows a lane (the kernel before) | 27 % |
//! | 4 rows a lane, 4 keys a step, every index a constant, outputs rescaled in each step | 64 % |
//! | and the scale not multiplied into q within the step, 32 groups of lanes | 71 % |
//! | and outputs rescaled only when a maximum grows by more than 8 | 75 % |
//! | and keys staged while values are weighed, so that a step has two barriers instead of three (kept) | 74 to 80 % |
//! | a mask behind a branch instead of in each step | 57 % |
//! | no barrier between scores and sums | 55 % |
//! | 2, 3, 5, 6, 8 rows a lane | 62, 60, 56, 53, 50 % |
//! | 8 keys a step, with barriers between its halves | 61 to 66 % |
//! | keys straight from storage, 2 or 8 groups | 37 % |
//! | an inner loop over 32 staged keys; without wgpu's checks | 29 to 35 %; 32 to 43 % |
//!
//! On 2 cores of an Intel Xeon with AVX-512 (2026-11-28, ceiling 221 to 226 GFLOP/s, processor time, beside other work) the
//! kept kernel measures 59 to 61 % at N = 2048 and 56 % with heads of 48; the broadcast one 51 and 47 %. Without workgroup
//! memory and barriers, each of eight lanes loading a key's column from storage and handing it on, 8 keys a step, trial
//! kernels measure 49, 54, 39, 39 % with 2, 3, 4, 6 rows a lane, and 55 % with 4 rows of 48.
//!
//! There instructions arrive no faster than at about 25 bytes of code a cycle, whatever they are, for a step is too long for the
//! cache of decoded ones. A value that all lanes share is 24 bytes: an address, its comparison with the size of workgroup memory,
//! a conditional move, a broadcast; a multiply-add is 6 to 9. Going element by element through 8 keys a step, with a barrier
//! between the halves of their scores (or compilers load them all first and spill them), has 16 bytes for a multiply-add instead
//! of 18: it measured 5 % more (0 to 9 %), the same with heads of 128, and is not kept, because its 37 KiB between two barriers
//! are more than the 32 KiB of instructions that most processors cache; with one barrier more half of the gain was left. 5 and 6
//! rows a lane added 4 %, 8 spilled; element by element with 4 keys lost a tenth.
//!
//! By samples of the processor the products run at the ceiling; the sums take a quarter longer, for a loop's variables are
//! blended with the execution mask, on the ports that multiply; the exponentials take a tenth, and staging in gathers and
//! scatters of 8 lanes another tenth. Twice the code no longer fits the cache for instructions, which is why larger
//! steps, with fewer blends, are slower. The number of the lane must look as if it changed in the loop: it is computed anew
//! after each barrier otherwise, in 24 divisions.
//!
//! | Mesa 25.0.7 (its `fma` is two operations, its loads are one a lane) | share | compiles for |
//! |---|---|---|
//! | 8 x 8 scores a lane, direct loads (the kernel before) | 9 to 13 % | 12 s |
//! | subgroup broadcasts, keys from storage, 2 / 4 / 5 / 6 rows a lane | 33 / 46 / 48 / 50 % | 4 / 9 / 12 / 15 s |
//! | subgroup broadcasts, keys staged; 16 groups of 4 rows / 32 groups of 2 | 54 / 42 % | 10 / 3 s |
//! | the whole kernel, 32 groups of 4 / 3 / 2 rows (3 rows, in 16 groups, are kept) | 60 / 53 / 43 % | 23 / 17 / 9 s on a busy machine |
//!
//! Compilation there is by the number of loads and stores, each of which becomes a loop over the lanes. Loops in loops
//! after the last barrier doubled it.

use std::fmt;

use crate::config::{DilatedAttentionConfig, MAX_HEAD_DIM};
use crate::error::{Error, Result};
use crate::kernel::coop::CoopTile;
use crate::kernel::{KernelTier, Storage};
use crate::plan::{DeviceFacts, Processor};
use crate::tuning::Choice;
use crate::tuning::because::{BROADCASTS, GPU, LOADS_PER_LANE, MATRICES, UNIFORM_LOADS};

/// Groups of lanes that share the staged keys in the [`Uniform`](ForwardShape::Uniform) shape, at most.
const MOST_LANE_GROUPS: u32 = 32;

/// The same of the [`Broadcast`](ForwardShape::Broadcast) shape.
const BROADCAST_LANE_GROUPS: u32 = 16;

/// Largest heads that the kernel with cooperative matrices computes: its queries and its output are kept in registers.
const MOST_COOP_HEAD_DIM: u32 = 128;

/// How the forward kernel lays its work out. All compute the same; see the shader files for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ForwardShape {
    /// Tiles of keys, values and probabilities in workgroup memory: GPUs, other software drivers.
    Tile,
    /// Lanes own rows and load each staged key together: CPUs whose driver loads shared addresses once.
    Uniform,
    /// Lanes own rows; each loads another staged key, and subgroup operations hand it on: CPUs whose driver loads once per
    /// lane.
    Broadcast,
    /// Cooperative matrices, for tensors stored as f16: GPUs that have them.
    Coop(CoopTile),
}

impl ForwardShape {
    /// All shapes but those with cooperative matrices.
    pub const ALL: [Self; 3] = [Self::Tile, Self::Uniform, Self::Broadcast];

    /// Whether it multiplies cooperative matrices.
    pub fn is_cooperative(self) -> bool {
        matches!(self, Self::Coop(_))
    }

    /// Name of the shader.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tile => "forward_tile",
            Self::Uniform => "forward_uniform",
            Self::Broadcast => "forward_broadcast",
            Self::Coop(_) => "forward_coop",
        }
    }

    /// Keys of a step of the shapes for CPUs.
    fn keys(self) -> u32 {
        match self {
            Self::Broadcast => 8,
            _ => 4,
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
    /// Lanes of a group of the shapes for CPUs; the other has a fixed number.
    pub lanes: u32,
    /// Groups of lanes that share what is staged, in the same shapes.
    pub lane_groups: u32,
    /// How q, k, v and the output are stored.
    pub storage: Storage,
}

impl ForwardVariant {
    /// The shape that measured best on such a device; see docs/performance.md. On CPUs its tile is about half of the shortest
    /// segment's rows or less, so that there is work for several cores.
    ///
    /// Cooperative matrices where they are faster, which on CPUs they are not: lavapipe of Mesa 26.2.6 multiplies them at a
    /// tenth of its ceiling.
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
                Err(_) => (ForwardShape::Tile, GPU),
            },
            Processor::Cpu {
                uniform_loads: true,
                ..
            } => (ForwardShape::Uniform, UNIFORM_LOADS),
            Processor::Cpu { .. }
                if facts.processor.has_broadcasts()
                    && Self::with_shape(
                        ForwardShape::Broadcast,
                        config.head_dim(),
                        storage,
                        facts,
                    )
                    .workgroup_memory_bytes()
                        <= facts.max_workgroup_memory_bytes =>
            {
                (ForwardShape::Broadcast, BROADCASTS)
            }
            Processor::Cpu { .. } => (ForwardShape::Tile, LOADS_PER_LANE),
        };
        Choice::adapter(Self::fitting(shape, config, storage, facts), because)
    }

    /// The kernel of a tier.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] with the reason why there is none for such tensors on such a device.
    pub fn of_tier(
        tier: KernelTier,
        config: &DilatedAttentionConfig,
        storage: Storage,
        facts: &DeviceFacts,
    ) -> Result<Self> {
        tier.check(facts)?;
        let fitting = |shape| Self::fitting(shape, config, storage, facts);
        let variant = match tier {
            KernelTier::Tile => fitting(ForwardShape::Tile),
            KernelTier::Rows => fitting(ForwardShape::Uniform),
            KernelTier::Broadcast => fitting(ForwardShape::Broadcast),
            KernelTier::Coop8 | KernelTier::Coop16 => {
                Self::cooperative(config.head_dim(), storage, facts)?
            }
        };
        variant.check(config.head_dim(), facts)?;
        Ok(variant)
    }

    /// A given shape, with a tile that fits the segments of `config`.
    pub fn fitting(
        shape: ForwardShape,
        config: &DilatedAttentionConfig,
        storage: Storage,
        facts: &DeviceFacts,
    ) -> Self {
        let largest = Self::with_shape(shape, config.head_dim(), storage, facts);
        if shape == ForwardShape::Broadcast {
            // One kernel for all segments, for each compiles for many seconds.
            return largest;
        }
        // Rounded as what is remembered of other segments is, see `tuning`.
        let fitting = config
            .rows_of_shortest_segment()
            .next_power_of_two()
            .div_ceil(2 * largest.rows_per_lane() * largest.lanes);
        Self {
            lane_groups: fitting.next_power_of_two().min(largest.lane_groups),
            ..largest
        }
    }

    /// The kernel with cooperative matrices, with the largest tile that fits.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] with the reason why there is none for such tensors on such a device.
    pub fn cooperative(head_dim: u32, storage: Storage, facts: &DeviceFacts) -> Result<Self> {
        let matrix = CoopTile::matrix_for(storage, facts)?;
        CoopTile::check_head_dim(head_dim, MOST_COOP_HEAD_DIM)?;
        // Each lane owns whole rows, and a matrix of keys should meet two of queries.
        let rows = matrix.lanes.max(2 * matrix.size);
        CoopTile::candidates(matrix, rows)
            .map(|tile| Self::with_shape(ForwardShape::Coop(tile), head_dim, storage, facts))
            .find(|variant| variant.workgroup_memory_bytes() <= facts.max_workgroup_memory_bytes)
            .ok_or_else(|| CoopTile::no_room(facts))
    }

    /// A given shape on a device, with its largest tile.
    pub fn with_shape(
        shape: ForwardShape,
        head_dim: u32,
        storage: Storage,
        facts: &DeviceFacts,
    ) -> Self {
        let lanes = match (shape, facts.processor) {
            (ForwardShape::Broadcast, _) => 8,
            (_, Processor::Cpu { lanes, .. }) => lanes,
            (_, Processor::Gpu) => 32,
        };
        Self {
            shape,
            head_dim,
            lanes,
            lane_groups: match shape {
                ForwardShape::Broadcast => BROADCAST_LANE_GROUPS,
                _ => (256 / lanes.max(1)).clamp(1, MOST_LANE_GROUPS),
            },
            storage,
        }
    }

    /// Rows of a lane, in the shapes for CPUs: what is compiled grows with the product of rows and elements.
    fn rows_per_lane(&self) -> u32 {
        let most = match self.shape {
            // What is compiled on older drivers takes seconds for each row.
            ForwardShape::Broadcast => 192,
            _ => 256,
        };
        (most / self.head_dim).clamp(1, 4)
    }

    /// Rows that one workgroup computes.
    pub fn rows_per_workgroup(&self) -> u32 {
        match self.shape {
            ForwardShape::Tile if self.head_dim <= 128 => 64,
            ForwardShape::Tile => 32,
            ForwardShape::Uniform | ForwardShape::Broadcast => {
                self.rows_per_lane() * self.lanes * self.lane_groups
            }
            ForwardShape::Coop(tile) => tile.vectors(),
        }
    }

    /// Bytes of workgroup memory. A test compares them with the shader's variables.
    pub fn workgroup_memory_bytes(&self) -> u32 {
        match self.shape {
            // A chunk of q or weights (9 vec4 a row), a chunk of k or v (9 vec4 for 32 keys), maxima (2 vec4 a row).
            ForwardShape::Tile => (self.rows_per_workgroup() * (9 + 2) + 32 * 9) * 16,
            // Keys and values of a step, and a flag.
            ForwardShape::Uniform | ForwardShape::Broadcast => {
                2 * self.shape.keys() * self.head_dim * 4 + 16
            }
            // Keys, values, weights; scores; a word for each key, a flag, two factors for each row.
            ForwardShape::Coop(tile) => {
                let columns = tile.column_blocks(self.head_dim) * tile.matrix.size;
                CoopTile::halves(2 * tile.staged, columns)
                    + CoopTile::halves(tile.vectors(), tile.staged)
                    + CoopTile::floats(tile.vectors(), tile.staged)
                    + 4 * tile.staged
                    + 16
                    + 8 * tile.vectors()
            }
        }
    }

    /// Constants of the shader.
    pub fn constants(&self) -> Vec<(&'static str, u32)> {
        let columns = ("HEAD_DIM_VEC4", self.head_dim / 4);
        match self.shape {
            ForwardShape::Coop(tile) => tile.constants(self.head_dim),
            ForwardShape::Tile => vec![columns],
            ForwardShape::Uniform | ForwardShape::Broadcast => vec![
                columns,
                ("LANES", self.lanes),
                ("LANE_GROUPS", self.lane_groups),
                ("ROWS_PER_LANE", self.rows_per_lane()),
                ("KEYS", self.shape.keys()),
            ],
        }
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
        self.storage.check(facts)?;
        if let ForwardShape::Coop(tile) = self.shape {
            tile.check(self.storage, facts)?;
            CoopTile::check_head_dim(head_dim, MOST_COOP_HEAD_DIM)?;
            if !tile.rows.is_multiple_of(tile.matrix.lanes) {
                return invalid("rows of the kernel", tile.rows, "a multiple of the lanes");
            }
        }
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
        if self.shape == ForwardShape::Broadcast && !facts.processor.has_broadcasts() {
            return Err(Error::InvalidConfig {
                what: "shape of the kernel",
                given: self.shape.name().to_owned(),
                need: "one for this device, which has no subgroups of 8 lanes with broadcasts",
            });
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
            "{} ({}, {} rows a workgroup, {} bytes of workgroup memory)",
            self.shape.name(),
            self.storage.dtype(),
            self.rows_per_workgroup(),
            self.workgroup_memory_bytes()
        )
    }
}
