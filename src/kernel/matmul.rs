//! The shapes of the kernel of products of matrices and which one suits a device.
//!
//! **Rows: what limits them** (lavapipe of Mesa 26.2.6 with LLVM 22.1.8 on 2 cores of an AMD EPYC with AVX-512 but
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
//! The shares are of kernels for this one shape, some with 768 columns or 960 rows. With the tests that real shapes need the
//! kept one measures 55 to 58 %; where b is transposed 48 % at rows of 768 elements and 32 to 36 % at 1024 and 3072: the
//! lanes' columns then lie a row apart, and whole multiples of 4096 bytes share one set of the cache.
//!
//! What the compiled code does: a load at a shared address from workgroup memory is a broadcast, with a compare
//! and a conditional move for its bounds; a load at addresses of the lanes' own is a hardware gather, which takes the
//! time of 32 fma, so an element of b has to meet many rows; from storage a shared address takes two branches, and its value
//! passes through the stack. Every step blends each sum with the execution mask and stores it. More than about 24 vectors
//! of b spill. With 4 a step and no gathers (wrong results) it ran at 76 %.
//!
//! **Broadcasts** (2 cores of an Intel Xeon with AVX-512 but 8 lanes, 2026-11-28, processor time beside other work; share of
//! the ceiling there, 221 to 226 GFLOP/s on Mesa 26.2.6 and 111 on 25.0.7; trial kernels of 1024 rows and columns, sums along
//! the stored rows of both factors, 768 elements on 26.2.6 and 1040 on 25.0.7):
//!
//! | structure | Mesa 26.2.6 | Mesa 25.0.7 | compiles there for |
//! |---|---|---|---|
//! | 4 rows a lane, 16 columns, 4 elements a step, scalar loads | | 36 % | 1.8 s |
//! | 4 rows, 24 columns, 4 a step, loads in fours (kept on 25.0.7) | 41 % | 50 % | 2.6 s |
//! | 4 rows, 32, 40, 48 columns, 4 a step | 43, 47, 47 % | 48, 41 % | 3.2, 5.4 s |
//! | 2, 3, 5, 6, 8 rows, 32 columns, 4 a step | -, 40, 45, 43, 46 % | 41, -, 48, 46, 48 % | 1.2 to 13 s |
//! | 4 rows, 24, 32, 40, 48 columns, 8 a step | 48, 50, 55, 51 % | 32 columns 34 % | 5.8 s |
//! | 6 rows, 40, 48, 64 columns, 8 a step | 55, 57, 55 % | | |
//! | 8 rows, 32, 40, 48, 64, 80, 96 columns, 8 a step (48 kept on 26.2.6) | 52, 57, 58, 61, 47, 46 % | | |
//! | 10, 12, 16 rows, 64 columns, 8 a step | 42, 44, 44 % | | |
//! | 8 rows, 64 columns, 4, 12, 16 a step | 52, 48, 45 % | | |
//! | both factors staged in workgroup memory, 8 rows, 32 columns | | 31 % | 2.6 s |
//! | only b staged, 8 rows, 32; 64 columns | | 40; 40 % | 4; 14 s |
//!
//! The kernel itself, in GFLOP/s, beside the others on the same adapter in the same run:
//!
//! | product (rows x columns x sum) | 26.2.6 broadcast | rows | 25.0.7 broadcast | tile |
//! |---|---|---|---|---|
//! | 1024 x 1024 x 1024, b transposed as a layer's weights are | 116 | 96 (with a transposed copy of b) | 51 to 54 | 10.5 |
//! | 1024 x 768 x 768, the same | 123 | 88 | 54 | 10.9 |
//! | 1024 x 3072 x 768, the same | 120 | 89 | 55 | 11.1 |
//! | 1024 x 768 x 3072, the same | 119 | 95 | 56 | 10.3 |
//! | 1024 x 1024 x 1024, nothing transposed | 103 | 103 | 50 to 54 | 10.8 |
//! | 1024 x 1024 x 1024, a transposed | 85 | 104 | 48 | 9.5 |
//!
//! The tile compiles for 10 to 20 s on 25.0.7, the broadcasts for 2 to 3 s. What lanes hand over has to stay in registers, so
//! columns go one by one: with 40 columns in 4 rows, cells of four columns at a time measured 95 to 100 instead of 102 to 108.
//! By samples of the processor two fifths of the time on 26.2.6 were gathers there, 72 for 1280 fma; the kept shape has 112 for
//! 3072. One of 64 columns is as fast or slower in the whole kernel, and near where the code no longer fits the cache. On
//! 25.0.7 three fifths are loads, each of which is a chain of branches. Rows that are whole pages apart share one set of the
//! cache, which takes a tenth.
//!
//! Until 2026-11-28 the rows copied a transposed b of page-wide rows first (1024 x 1024 x 1024 96 instead of 70 GFLOP/s); now
//! they only meet such a factor where there are no broadcasts, and the copy is gone.

use std::fmt;

use crate::error::{Error, Result};
use crate::kernel::coop::CoopTile;
use crate::kernel::{KernelTier, Storage};
use crate::plan::{CooperativeMatrix, DeviceFacts, Processor};
use crate::tuning::Choice;
use crate::tuning::because::{
    BROADCASTS, BROADCASTS_OF_FOURS, GPU, LOADS_PER_LANE, MATRICES, UNIFORM_LOADS,
};

/// How the kernel lays its work out. All compute the same; see the shader files for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MatmulVariant {
    /// Tiles of both factors in workgroup memory: GPUs, older software drivers without subgroups of 8 lanes.
    Tile,
    /// Four columns a lane in registers: CPUs whose driver loads shared addresses once, where [`Broadcast`](Self::Broadcast)
    /// is slower or does not run.
    Rows {
        /// The adapter's vector width in floats.
        lanes: u32,
        /// Groups of lanes beside each other.
        lane_groups: u32,
    },
    /// Rows of a lane in registers, whose columns are handed from lane to lane: CPUs with subgroups of 8 lanes, for
    /// factors and results of rows in fours; newer drivers for those of a linear layer, whose sums run along stored rows.
    Broadcast {
        /// Rows of a lane, 4 or 8.
        rows: u32,
        /// Fours of columns in each row.
        cells: u32,
        /// Elements of the sum in a step, 4 or 8, which the length of the sum is a multiple of.
        depth: u32,
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
    /// Most cells of a row in the [`Broadcast`](Self::Broadcast) shape: beyond, kernels are slower and compile for long.
    const MOST_CELLS: u32 = 32;

    /// The shape that measured best on such a device, for factors that are stored so, transposed or not, and a result with so
    /// many columns.
    pub fn choose(
        columns: u64,
        factors: [Storage; 2],
        transposed: [bool; 2],
        facts: &DeviceFacts,
    ) -> Self {
        Self::choice(columns, factors, transposed, facts).variant
    }

    /// As [`choose`](Self::choose), with the reason.
    pub fn choice(
        columns: u64,
        factors: [Storage; 2],
        transposed: [bool; 2],
        facts: &DeviceFacts,
    ) -> Choice<Self> {
        let wanted = facts
            .tier
            .map(|tier| Self::of_tier(tier, columns, factors, facts));
        if let Some(Ok(variant)) = wanted {
            return variant.into();
        }
        let broadcasts = facts.processor.has_broadcasts();
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
            } => match broadcasts && transposed == [false, true] {
                true => Choice::adapter(Self::broadcast(facts), BROADCASTS_OF_FOURS),
                false => Choice::adapter(Self::rows(columns, lanes), UNIFORM_LOADS),
            },
            Processor::Cpu { .. } if broadcasts => {
                Choice::adapter(Self::broadcast(facts), BROADCASTS)
            }
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
            (KernelTier::Broadcast, _) => Ok(Self::broadcast(facts)),
            (KernelTier::Coop8 | KernelTier::Coop16, _) => Self::cooperative(factors, facts),
            (KernelTier::Rows, _) => Err(Error::InvalidConfig {
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
            Self::Rows { lanes, lane_groups } => {
                let threads = lanes.checked_mul(lane_groups);
                match threads.is_some_and(|threads| (1..=256).contains(&threads)) {
                    true => Ok(()),
                    false => self.refused("1 to 256 lanes in all groups together"),
                }
            }
            Self::Broadcast { rows, cells, depth } => {
                KernelTier::Broadcast.check(facts)?;
                let even = (2..=Self::MOST_CELLS).contains(&cells) && cells.is_multiple_of(2);
                match even && [rows, depth].iter().all(|number| [4, 8].contains(number)) {
                    true => Ok(()),
                    false => {
                        self.refused("4 or 8 rows and elements a step, 2 to 32 cells in pairs")
                    }
                }
            }
            Self::Coop(_) if Self::cooperative(factors, facts)? != self => {
                self.refused("the one that MatmulVariant::cooperative has for the device")
            }
            _ => Ok(()),
        }
    }

    fn refused(self, need: &'static str) -> Result<()> {
        Err(Error::InvalidConfig {
            what: "kernel of a product",
            given: format!("{self:?}"),
            need,
        })
    }

    /// The shape [`Broadcast`](Self::Broadcast) that is fast on such a device and compiles in a second or two.
    pub(crate) fn broadcast(facts: &DeviceFacts) -> Self {
        match facts.processor {
            Processor::Cpu {
                uniform_loads: true,
                ..
            } => Self::Broadcast {
                rows: 8,
                cells: 12,
                depth: 8,
            },
            _ => Self::Broadcast {
                rows: 4,
                cells: 6,
                depth: 4,
            },
        }
    }

    /// The kernel for sums of `inner` elements, which, like rows and windows, are (`in_fours`) or are not multiples of 4 long:
    /// this one wherever it can be.
    pub(crate) fn for_lengths(
        self,
        [inner, columns]: [u64; 2],
        in_fours: bool,
        facts: &DeviceFacts,
    ) -> Self {
        match self {
            Self::Broadcast { .. } if !in_fours => match facts.processor {
                Processor::Cpu {
                    uniform_loads: true,
                    lanes,
                    ..
                } => Self::rows(columns, lanes),
                _ => Self::Tile,
            },
            Self::Broadcast { rows, cells, depth } if !inner.is_multiple_of(u64::from(depth)) => {
                Self::Broadcast {
                    rows,
                    cells,
                    depth: 4,
                }
            }
            _ => self,
        }
    }

    /// Name of the shader.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tile => "matmul_tile",
            Self::Broadcast { .. } => "matmul_broadcast",
            Self::Rows { .. } => "matmul_rows",
            Self::Coop(_) => "matmul_coop",
        }
    }

    /// Rows and columns that one workgroup computes.
    pub fn tile(self) -> [u64; 2] {
        match self {
            Self::Tile => [64, 64],
            Self::Broadcast { rows, cells, .. } => [8 * rows, 4 * cells].map(u64::from),
            Self::Rows { lanes, lane_groups } => [64, u64::from(4 * lanes * lane_groups)],
            Self::Coop(product) => product.tile().map(u64::from),
        }
    }

    /// Long sums over few tiles are split until there are about this many workgroups.
    pub fn wanted_workgroups(self) -> u64 {
        match self {
            Self::Tile | Self::Broadcast { .. } | Self::Coop(_) => 256,
            // As each is large, enough to even out a few cores.
            Self::Rows { .. } => 16,
        }
    }

    /// Constants of the shader.
    pub fn constants(self) -> Vec<(&'static str, u32)> {
        match self {
            Self::Tile => Vec::new(),
            Self::Broadcast { rows, cells, depth } => {
                vec![("ROWS", rows), ("CELLS", cells), ("DEPTH", depth)]
            }
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
