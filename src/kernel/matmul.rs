//! The shapes of the kernel of products of matrices and which one suits a device.
//!
//! **What limits the software adapters** (lavapipe of Mesa 26.2.6 with LLVM 22.1.8 on 2 cores of an AMD EPYC with AVX-512 but
//! 8 lanes, 2026-11-24; 1024 x 1024 x 1024, share of the adapter's own multiply-add ceiling in the same processor time):
//!
//! | structure | share |
//! |---|---|
//! | tile: 8 x 8 elements a thread from workgroup memory, as on a GPU | 8 % |
//! | a lane owns 1 column in 64 rows, elements of a straight from storage, 16 a step | 15 % |
//! | a lane owns 4 columns in 32 or 64 rows, a straight from storage, 4 a step | 22 to 24 % |
//! | a lane owns 1 column in 64 or 128 rows, a in workgroup memory, 16 a step | 35 % |
//! | 2 columns in 64 rows, 8 a step; 12 a step | 52 to 56 %; 40 % |
//! | 4 columns in 64 rows; 4, 5, 6, 7, 8 a step (5 kept) | 57, 61 to 64, 48, 41, 44 % |
//! | 4 columns in 48, 80, 96, 128 rows, 5 a step | 61, 62, 53, 56 % |
//! | 6 columns in 64 rows, 4 a step | 52 % |
//! | two steps between barriers, by a loop; unrolled | 32 to 50 %; 36 % |
//!
//! The shares are of kernels for this one shape, some with 768 columns or 960 rows. With the tests that real shapes need the kept one measures 55 to 58 %; where b is transposed 48 % at rows of 768 elements
//! and 32 to 36 % at 1024 and 3072: the lanes' columns then lie a row apart, and whole multiples of 4096 bytes share
//! one set of the cache.
//!
//! So from 256 rows on a b whose stored rows are whole pages is transposed into a copy first (f32, in one binding), which needs
//! the bytes of b once more while the product runs. The whole call without and with it, processor time over 2 cores, by ticks of
//! 10 ms: 1024 x 1024 x 1024 55 and 40 ms (35 untransposed), 4096 x 3072 x 768 465 and 330 ms. Where rows are no whole pages it
//! gains nothing and is left out: 4096 x 768 x 3072 315 and 320 ms, 4096 x 768 x 768 70 and 90 ms.
//!
//! What the compiled code does: a load at a shared address from workgroup memory is a broadcast, with a compare
//! and a conditional move for its bounds; a load at addresses of the lanes' own is a hardware gather, which takes the
//! time of 32 fma, so an element of b has to meet many rows; from storage a shared address takes two branches, and its value
//! passes through the stack. Every step blends each sum with the execution mask and stores it. More than about 24 vectors
//! of b spill. With 4 a step and no gathers (wrong results) it ran at 76 %.
//!
//! On Mesa 25.0.7 with LLVM 15.0.6 the tile runs at 10 % and the rows at 13 %, but these compile for 25 s.

use std::fmt;

use crate::error::{Error, Result};
use crate::kernel::coop::CoopTile;
use crate::kernel::{KernelTier, Storage};
use crate::plan::{CooperativeMatrix, DeviceFacts, Processor};
use crate::tuning::Choice;
use crate::tuning::because::{GPU, LOADS_PER_LANE, MATRICES, UNIFORM_LOADS};

/// How the kernel lays its work out. All compute the same; see the shader files for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MatmulVariant {
    /// Tiles of both factors in workgroup memory: GPUs, older software drivers.
    Tile,
    /// Four columns a lane in registers: CPUs whose driver loads shared addresses once.
    Rows {
        /// The adapter's vector width in floats.
        lanes: u32,
        /// Groups of lanes beside each other.
        lane_groups: u32,
    },
    /// Cooperative matrices, for factors stored as f16: GPUs that have them.
    Coop(CoopProduct),
}

/// How the kernel with cooperative matrices lays its work out: two by two subgroups, each with a block of c.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CoopProduct {
    /// The matrices.
    pub matrix: CooperativeMatrix,
    /// Matrices from top to bottom of a subgroup's block.
    pub row_blocks: u32,
    /// Matrices beside each other in it.
    pub column_blocks: u32,
    /// Inner elements that are staged at a time.
    pub staged: u32,
}

impl CoopProduct {
    /// The largest block that fits.
    pub(crate) fn with(matrix: CooperativeMatrix, facts: &DeviceFacts) -> Self {
        let of_rows = |row_blocks| Self {
            matrix,
            row_blocks,
            column_blocks: 2,
            staged: 32,
        };
        let fits =
            |product: &Self| product.workgroup_memory_bytes() <= facts.max_workgroup_memory_bytes;
        Some(of_rows(4)).filter(fits).unwrap_or(of_rows(2))
    }

    /// Rows and columns of the workgroup's tile.
    pub(crate) fn tile(&self) -> [u32; 2] {
        [self.row_blocks, self.column_blocks].map(|blocks| 2 * blocks * self.matrix.size)
    }

    /// Bytes of workgroup memory, at most.
    pub fn workgroup_memory_bytes(&self) -> u32 {
        let [rows, columns] = self.tile();
        // Padding is least along the longer side, so this is what it takes untransposed or more.
        CoopTile::halves(rows.max(self.staged), rows.min(self.staged))
            + CoopTile::halves(columns.max(self.staged), columns.min(self.staged))
            + CoopTile::floats(4 * self.matrix.size, self.matrix.size)
    }
}

impl MatmulVariant {
    /// The shape that measured best on such a device, for factors that are stored so and a result with so many columns.
    pub fn choose(columns: u64, factors: [Storage; 2], facts: &DeviceFacts) -> Self {
        Self::choice(columns, factors, facts).variant
    }

    /// As [`choose`](Self::choose), with the reason.
    pub fn choice(columns: u64, factors: [Storage; 2], facts: &DeviceFacts) -> Choice<Self> {
        let wanted = facts
            .tier
            .map(|tier| Self::of_tier(tier, columns, factors, facts));
        if let Some(Ok(variant)) = wanted {
            return variant.into();
        }
        match facts.processor {
            // On CPUs they are slower than the rows.
            Processor::Gpu => match Self::cooperative(factors, facts) {
                Ok(variant) => Choice::adapter(variant, MATRICES),
                Err(_) => Choice::adapter(Self::Tile, GPU),
            },
            Processor::Cpu {
                uniform_loads: true,
                lanes,
                ..
            } => Choice::adapter(Self::rows(columns, lanes), UNIFORM_LOADS),
            Processor::Cpu { .. } => Choice::adapter(Self::Tile, LOADS_PER_LANE),
        }
    }

    /// The kernel of a tier.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] with the reason why there is none for such factors on such a device.
    pub fn of_tier(
        tier: KernelTier,
        columns: u64,
        factors: [Storage; 2],
        facts: &DeviceFacts,
    ) -> Result<Self> {
        tier.check(facts)?;
        match (tier, facts.processor) {
            (KernelTier::Tile, _) => Ok(Self::Tile),
            (KernelTier::Rows, Processor::Cpu { lanes, .. }) => Ok(Self::rows(columns, lanes)),
            (KernelTier::Coop8 | KernelTier::Coop16, _) => Self::cooperative(factors, facts),
            (KernelTier::Rows | KernelTier::Broadcast, _) => Err(Error::InvalidConfig {
                what: "tier of a product's kernel",
                given: tier.to_string(),
                need: "another: it has no product",
            }),
        }
    }

    /// The shape [`Rows`](Self::Rows) for so many columns: as few tiles as there can be, all of about one width; in fours,
    /// for each width is a kernel to compile.
    pub(crate) fn rows(columns: u64, lanes: u32) -> Self {
        let most = (256 / lanes).min(32);
        let groups = columns.div_ceil(u64::from(4 * lanes)).max(1);
        let even = groups.div_ceil(groups.div_ceil(u64::from(most)));
        Self::Rows {
            lanes,
            lane_groups: (even as u32).next_multiple_of(4).min(most),
        }
    }

    /// The shape with cooperative matrices.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] with the reason why there is none for such factors on such a device.
    pub fn cooperative(factors: [Storage; 2], facts: &DeviceFacts) -> Result<Self> {
        let other = factors.into_iter().find(|storage| *storage != Storage::F16);
        let matrix = CoopTile::matrix_for(other.unwrap_or(Storage::F16), facts)?;
        let product = CoopProduct::with(matrix, facts);
        if product.workgroup_memory_bytes() > facts.max_workgroup_memory_bytes {
            return Err(CoopTile::no_room(facts));
        }
        Ok(Self::Coop(product))
    }

    /// Whether the kernel takes factors that are stored so on a device with `facts`.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] when it does not.
    pub fn check(self, factors: [Storage; 2], facts: &DeviceFacts) -> Result<()> {
        match self {
            Self::Coop(_) if Self::cooperative(factors, facts)? != self => {
                Err(Error::InvalidConfig {
                    what: "kernel of a product",
                    given: format!("{self:?}"),
                    need: "the one that MatmulVariant::cooperative has for the device",
                })
            }
            _ => Ok(()),
        }
    }

    /// Name of the shader.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tile => "matmul_tile",
            Self::Rows { .. } => "matmul_rows",
            Self::Coop(_) => "matmul_coop",
        }
    }

    /// Rows and columns that one workgroup computes.
    pub fn tile(self) -> [u64; 2] {
        match self {
            Self::Tile => [64, 64],
            Self::Rows { lanes, lane_groups } => [64, u64::from(4 * lanes * lane_groups)],
            Self::Coop(product) => product.tile().map(u64::from),
        }
    }

    /// Long sums over few tiles are split until there are about this many workgroups.
    pub fn wanted_workgroups(self) -> u64 {
        match self {
            Self::Tile | Self::Coop(_) => 256,
            // As each is large, enough to even out a few cores.
            Self::Rows { .. } => 16,
        }
    }

    /// Constants of the shader.
    pub fn constants(self) -> Vec<(&'static str, u32)> {
        match self {
            Self::Tile => Vec::new(),
            Self::Rows { lanes, lane_groups } => {
                vec![("LANES", lanes), ("LANE_GROUPS", lane_groups)]
            }
            Self::Coop(product) => vec![
                ("SUBGROUP", product.matrix.lanes),
                ("SUBGROUPS_X", 2),
                ("SUBGROUPS_Y", 2),
                ("ROW_BLOCKS", product.row_blocks),
                ("COLUMN_BLOCKS", product.column_blocks),
                ("STAGED", product.staged),
            ],
        }
    }
}

impl fmt::Display for MatmulVariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [rows, columns] = self.tile();
        write!(
            f,
            "{} ({rows} x {columns} elements a workgroup)",
            self.name()
        )
    }
}
