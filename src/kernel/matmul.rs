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
//! What the compiled code does: a load at a shared address from workgroup memory is a broadcast, with a compare
//! and a conditional move for its bounds; a load at addresses of the lanes' own is a hardware gather, which takes the
//! time of 32 fma, so an element of b has to meet many rows; from storage a shared address takes two branches, and its value
//! passes through the stack. Every step blends each sum with the execution mask and stores it. More than about 24 vectors
//! of b spill. With 4 a step and no gathers (wrong results) it ran at 76 %.
//!
//! On Mesa 25.0.7 with LLVM 15.0.6 the tile runs at 10 % and the rows at 13 %, but these compile for 25 s.

use std::fmt;

use crate::plan::{DeviceFacts, Processor};
use crate::tuning::Choice;
use crate::tuning::because::{GPU, LOADS_PER_LANE, UNIFORM_LOADS};

/// How the kernel lays its work out. Both compute the same; see the shader files for each.
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
}

impl MatmulVariant {
    /// The shape that measured best on such a device, for a result with so many columns.
    pub fn choose(columns: u64, facts: &DeviceFacts) -> Self {
        Self::choice(columns, facts).variant
    }

    /// As [`choose`](Self::choose), with the reason.
    pub fn choice(columns: u64, facts: &DeviceFacts) -> Choice<Self> {
        match facts.processor {
            Processor::Cpu {
                uniform_loads: true,
                lanes,
            } => Choice::adapter(Self::rows(columns, lanes), UNIFORM_LOADS),
            Processor::Gpu => Choice::adapter(Self::Tile, GPU),
            Processor::Cpu { .. } => Choice::adapter(Self::Tile, LOADS_PER_LANE),
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

    /// Name of the shader.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tile => "matmul_tile",
            Self::Rows { .. } => "matmul_rows",
        }
    }

    /// Rows and columns that one workgroup computes.
    pub fn tile(self) -> [u64; 2] {
        match self {
            Self::Tile => [64, 64],
            Self::Rows { lanes, lane_groups } => [64, u64::from(4 * lanes * lane_groups)],
        }
    }

    /// Long sums over few tiles are split until there are about this many workgroups.
    pub fn wanted_workgroups(self) -> u64 {
        match self {
            Self::Tile => 256,
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
