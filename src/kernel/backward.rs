//! The shapes of the backward kernels and which one suits a device.
//!
//! **What makes the software adapters fast** (lavapipe on 2 cores of an AMD EPYC with AVX-512, 8 lanes, 2026-11-24; dense,
//! 1 head of 64, N = 2048, by processor time; share of the adapter's own multiply-add ceiling of 160 GFLOP/s on Mesa 26.2.6
//! and 86 on 25.0.7, operations counted as 2.5 times the forward's). The two passes do 3.5 times, so that 71 % is the most
//! there is; in brackets what dq and what dk and dv reach of the ceiling by the operations that they do. All tables here are of
//! these passes alone: the sweep before them takes two products more, see docs/performance.md.
//!
//! | Mesa 26.2.6 | share |
//! |---|---|
//! | 4 vectors a lane, 4 staged a step, 16 groups; sums behind a branch on staged NaNs (the kernels before) | 44 % (69, 57) |
//! | no branch around the sums | 46 % (75, 59) |
//! | and a barrier between the two sums | 49 % (75, 64) |
//! | and no branch at all, staged NaNs are zeros and spoil the weights of those that see them | 55 % (84, 75) |
//! | and sums that start from what they join (kept) | 55 % (80, 74) |
//! | groups of contiguous rows that skip what they do not see | 34 % (46, 48) |
//! | the number of the lane not a variable of the loop | 50 % (77, 66) |
//! | 4, 8, 12, 32 groups of lanes | 42, 51, 48, 52 % |
//! | 3 vectors a lane; 2 with 8 staged ones a step in 16 or 32 groups | 50 %; 47, 51 % |
//! | what is there joined at the end: `own` is loaded anew for it | 49 % (78, 63) |
//! | causal, N = 2048; N = 1024 | 43 %; 35 % |
//! | causal, 8 and 4 groups, N = 2048; N = 1024 | 43, 36 %; 37, 34 % |
//! | heads of 128, 2 vectors a lane (kept; N = 1024); on a busy machine | 48 % (73, 63); 33 % (49, 45) |
//! | heads of 128, 1, 3 or 4 vectors a lane in 32, 8, 8 groups | 37, 37, 42 % |
//!
//! What is left, by leaving parts out: staging takes 6 % of dq and 9 % of dk and dv, looking for NaNs 1 to 3 %. The second
//! sum takes twice the time of its operations. A share of 60 % would need 84 % of the ceiling in both passes. The two kernels
//! compile for 5 to 6 s at 64 elements, 5 to 8 s at 128.
//!
//! On 2 cores of an Intel Xeon with AVX-512 (2026-11-28, ceiling 170 to 206 GFLOP/s from hour to hour, each line with its own)
//! the kept kernels measure 43 to 46 % (63, 55). What was tried there:
//!
//! | Mesa 26.2.6, 4 or 8 heads of 64 | share |
//! |---|---|
//! | products by way of weights in memory (below), N = 1024; 2048 | 35 to 38; 40 % |
//! | the same, causal; heads of 48; 128 | 32, and more time on the clock; 45; 39 % |
//! | dk and dv in rows that leave ds for one product: 2.5 times the forward's operations, not 3.5 | 44 to 46 % |
//! | the same, heads of 16, 48, 128; causal | 34, 47, 45; 31 % |
//! | 8 staged a step in dk and dv, the scores in two halves | no change |
//!
//! To leave ds costs dk and dv a tenth in lanes' stores that lie next to each other (a row for each key: a quarter), and a product
//! of it runs at 41 to 50 %, so that what the fewer operations gain is lost; it also takes an eighth storage buffer, where Metal
//! leaves seven. What limits all of them is how fast instructions arrive: see src/kernel/forward.rs.
//!
//! Conditions cost because compilers blend what a loop keeps with the lanes for which they hold. So causal calls compute what
//! the diagonal drops of a workgroup's 512 rows.
//!
//! | Mesa 25.0.7 (its `fma` is two operations, its loads are one a lane) | share | compiles for |
//! |---|---|---|
//! | tile: workgroup memory as on a GPU (the kernels before) | 5 % | 16 s |
//! | subgroup broadcasts, 8 staged a step, 1 vector a lane (N = 1024) | 15 to 17 % (21 to 25, 21 to 23) | 22 to 24 s: 5 and 17 |
//! | 2 vectors a lane | 27 % (40, 36) | 54 s: 20 and 34 |
//! | 2 vectors a lane, columns split by one more barrier | | 56 s: 11 and 45 |
//! | 1 vector a lane, what is there not joined, dk and dv alone | | 7 s instead of 17 |
//! | loads and stores outside of the loop as loops over columns | | 25 s: 8 and 17 |
//!
//! Each load and store becomes a loop over the lanes there, and from about 600 of them on compilation takes far longer.
//! Broadcasts of staged vectors were kept until 2026-11-28, when on 2 cores of an Intel Xeon with AVX-512 (ceiling about
//! 100 GFLOP/s) they measured 17 to 28 % by head size. There, by processor time:
//!
//! | Mesa 25.0.7, products by way of weights in memory (kept; src/kernel/products.rs) | share | first call |
//! |---|---|---|
//! | 1 head of 64, N = 1024, f32; f16; bf16 | 43; 48; 48 % | 8 s |
//! | 4 heads of 64, N = 2048; causal, 8 of 64, N = 1024 | 43; 38 % | |
//! | 8 heads of 16, 32, N = 1024 | 31, 38 % | 10 s, 14 s on a busy machine |
//!
//! Each score is computed once, and products are what compiles fast there. On 26.2.6 the same kernels run as the `broadcast`
//! tier, and are slower than what lanes own.

use std::fmt;

use crate::config::{DilatedAttentionConfig, MAX_HEAD_DIM};
use crate::error::{Error, Result};
use crate::kernel::coop::CoopTile;
use crate::kernel::products::ProductTile;
use crate::kernel::{Access, Kernel, KernelTier, Storage};
use crate::plan::{DeviceFacts, Pass, Processor};
use crate::tuning::Choice;
use crate::tuning::because::{
    BROADCASTS, GPU, LOADS_PER_LANE, MATRICES, UNIFORM_LOADS, WIDE_HEADS,
};

/// Groups of lanes that share the staged vectors in the shapes for CPUs, at most.
const MOST_LANE_GROUPS: u32 = 16;

/// Largest heads that the kernels with cooperative matrices compute: two operands and up to two sums are kept in registers.
const MOST_COOP_HEAD_DIM: u32 = 128;

/// Largest heads of the [`Uniform`](BackwardShape::Uniform) shape, whose unrolled columns compile for long.
const MOST_UNIFORM_HEAD_DIM: u32 = 128;

/// Vectors that a subgroup of these owns.
const COOP_ROWS: u32 = 16;

/// How the backward kernels lay their work out. All compute the same; see the shader files for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BackwardShape {
    /// Tiles of 32 rows by 32 keys in workgroup memory: GPUs, other software drivers.
    Tile,
    /// Lanes own rows (or keys) and load each staged vector that those meet together: CPUs whose driver loads shared
    /// addresses once.
    Uniform,
    /// Products of matrices, by way of the weights of a window of rows and keys: CPUs with subgroups of eight lanes whose driver
    /// loads once per lane.
    Products(ProductTile),
    /// Cooperative matrices, for tensors stored as f16: GPUs that have them.
    Coop(CoopTile),
}

impl BackwardShape {
    /// All shapes but those with cooperative matrices, for heads of `head_dim` on a device with `facts`.
    pub fn all(head_dim: u32, facts: &DeviceFacts) -> [Self; 3] {
        let products = Self::Products(ProductTile::choose(head_dim, facts));
        [Self::Tile, Self::Uniform, products]
    }

    /// How weights are laid out, where they are kept in memory.
    pub(crate) fn product_tile(self) -> Option<ProductTile> {
        match self {
            Self::Products(tile) => Some(tile),
            _ => None,
        }
    }

    /// Whether it multiplies cooperative matrices.
    pub fn is_cooperative(self) -> bool {
        matches!(self, Self::Coop(_))
    }
}

/// The backward kernels with their constants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BackwardVariant {
    /// The shape.
    pub shape: BackwardShape,
    /// Elements in one head.
    pub head_dim: u32,
    /// Lanes of a group of the shapes for CPUs; the other has a fixed number.
    pub lanes: u32,
    /// Groups of lanes that share what is staged, in the same shapes.
    pub lane_groups: u32,
    /// How inputs and gradients are stored.
    pub storage: Storage,
}

impl BackwardVariant {
    /// The shape that measured best on such a device; see docs/performance.md. Its tile is no larger than the segments of
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
            } if config.head_dim() <= MOST_UNIFORM_HEAD_DIM => {
                (BackwardShape::Uniform, UNIFORM_LOADS)
            }
            Processor::Cpu {
                uniform_loads: true,
                ..
            } => (BackwardShape::Tile, WIDE_HEADS),
            Processor::Cpu { .. } => match Self::products(config.head_dim(), storage, facts) {
                Ok(variant) => return Choice::adapter(variant, BROADCASTS),
                Err(_) => (BackwardShape::Tile, LOADS_PER_LANE),
            },
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
            KernelTier::Rows => fitting(BackwardShape::Uniform),
            KernelTier::Broadcast => Self::products(config.head_dim(), storage, facts)?,
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
        if shape != BackwardShape::Uniform {
            return largest;
        }
        let fitting = config
            .rows_of_shortest_segment()
            .div_ceil(largest.vectors_per_lane() * largest.lanes);
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

    /// The kernels that multiply matrices.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] or [`Error::BindingTooSmall`] with the reason why they do not run.
    pub fn products(head_dim: u32, storage: Storage, facts: &DeviceFacts) -> Result<Self> {
        let shape = BackwardShape::Products(ProductTile::choose(head_dim, facts));
        let variant = Self::with_shape(shape, head_dim, storage, facts);
        variant.check(head_dim, facts)?;
        Ok(variant)
    }

    /// A given shape on a device, with its largest tile.
    pub fn with_shape(
        shape: BackwardShape,
        head_dim: u32,
        storage: Storage,
        facts: &DeviceFacts,
    ) -> Self {
        let lanes = match (shape, facts.processor) {
            (BackwardShape::Products(_), _) => 8,
            (_, Processor::Cpu { lanes, .. }) => lanes,
            (_, Processor::Gpu) => 32,
        };
        Self {
            shape,
            head_dim,
            lanes,
            lane_groups: (256 / lanes.max(1)).clamp(1, MOST_LANE_GROUPS),
            storage,
        }
    }

    /// Rows, or keys, of a lane: what is compiled grows with the product of them and of elements.
    fn vectors_per_lane(&self) -> u32 {
        (256 / self.head_dim).clamp(1, 4)
    }

    /// Rows, or keys, that one workgroup computes.
    pub fn tile(&self) -> u32 {
        match self.shape {
            BackwardShape::Tile => 32,
            BackwardShape::Uniform => self.vectors_per_lane() * self.lanes * self.lane_groups,
            BackwardShape::Products(tile) => tile.side(),
            BackwardShape::Coop(tile) => tile.vectors(),
        }
    }

    /// What is computed of each part of a branch, in order, once the sweep of [`Pass::Means`] has left its sums.
    pub fn passes(&self) -> &'static [Pass] {
        match self.shape {
            BackwardShape::Products(_) => &[Pass::Weights, Pass::Dq, Pass::Dk, Pass::Dv],
            _ => &[Pass::Dq, Pass::DkDv],
        }
    }

    /// The kernel of a pass: of [`Pass::Means`] and those of [`passes`](Self::passes), no other.
    pub fn kernel(&self, pass: Pass) -> Option<Kernel> {
        let computed = pass == Pass::Means || self.passes().contains(&pass);
        let kernel = BackwardKernel {
            variant: *self,
            pass,
        };
        computed.then_some(Kernel::Backward(kernel))
    }

    /// Workgroups that share the columns of a tile in a pass.
    pub(crate) fn column_tiles(&self, pass: Pass) -> u32 {
        match (self.shape, pass) {
            (BackwardShape::Products(tile), Pass::Dq | Pass::Dk | Pass::Dv) => {
                tile.column_tiles(self.head_dim)
            }
            _ => 1,
        }
    }

    fn most_workgroup_memory_bytes(&self) -> u32 {
        [Pass::Means, Pass::Dq, Pass::DkDv]
            .map(|pass| self.workgroup_memory_bytes(pass))
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
            // Vectors of two operands and a flag each; for keys also their rows' terms.
            BackwardShape::Uniform => {
                let terms = if pass == Pass::DkDv { 12 } else { 0 };
                4 * (2 * self.head_dim * 4 + 4 + terms)
            }
            BackwardShape::Products(_) => 0,
            // Two operands, one or two slabs of weights; two of products; a word for each staged vector; what the rows have.
            BackwardShape::Coop(tile) => {
                let columns = tile.column_blocks(self.head_dim) * tile.matrix.size;
                let (slabs, of_rows) = match pass {
                    Pass::Means => (1, 4 * tile.vectors()),
                    Pass::DkDv => (2, 12 * tile.staged),
                    _ => (2, 12 * tile.vectors()),
                };
                CoopTile::halves(2 * tile.staged, columns)
                    + CoopTile::halves(slabs * tile.vectors(), tile.staged)
                    + CoopTile::floats(2 * tile.vectors(), tile.staged)
                    + 4 * tile.staged
                    + of_rows
            }
        }
    }

    /// Constants of the shader of a pass.
    pub fn constants(&self, pass: Pass) -> Vec<(&'static str, u32)> {
        match self.shape {
            BackwardShape::Coop(tile) => tile.constants(self.head_dim),
            BackwardShape::Tile => vec![("HEAD_DIM_VEC4", self.head_dim / 4)],
            BackwardShape::Uniform => vec![
                ("HEAD_DIM_VEC4", self.head_dim / 4),
                ("LANES", self.lanes),
                ("LANE_GROUPS", self.lane_groups),
                ("VECTORS_PER_LANE", self.vectors_per_lane()),
            ],
            BackwardShape::Products(tile) => match pass {
                Pass::Dq | Pass::Dk | Pass::Dv => tile.constants_of_gradient(self.head_dim, pass),
                _ => tile.constants_of_scores(self.head_dim),
            },
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
        if let BackwardShape::Products(tile) = self.shape {
            if !facts.processor.has_broadcasts() {
                return Err(Error::InvalidConfig {
                    what: "shape of the kernel",
                    given: self.to_string(),
                    need: "one for this device, which has no subgroups of 8 lanes with broadcasts",
                });
            }
            tile.check(head_dim, facts)?;
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

/// The kernel of one pass of the backward; see [`BackwardVariant::kernel`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BackwardKernel {
    variant: BackwardVariant,
    pass: Pass,
}

impl BackwardKernel {
    /// How it lays its work out.
    pub fn variant(&self) -> BackwardVariant {
        self.variant
    }

    /// What it computes.
    pub fn pass(&self) -> Pass {
        self.pass
    }

    /// Name of the shader.
    pub fn name(&self) -> &'static str {
        match (self.variant.shape, self.pass) {
            (BackwardShape::Tile, Pass::Means) => "backward_means_tile",
            (BackwardShape::Tile, Pass::Dq) => "backward_dq_tile",
            (BackwardShape::Tile, _) => "backward_dkdv_tile",
            (BackwardShape::Uniform, Pass::Means) => "backward_means_rows",
            (BackwardShape::Uniform, Pass::Dq) => "backward_dq_rows",
            (BackwardShape::Uniform, _) => "backward_dkdv_rows",
            (BackwardShape::Products(_), Pass::Means) => "backward_means_products",
            (BackwardShape::Products(_), Pass::Weights) => "backward_weights",
            (BackwardShape::Products(_), _) => "backward_gradient",
            (BackwardShape::Coop(_), Pass::Means) => "backward_means_coop",
            (BackwardShape::Coop(_), Pass::Dq) => "backward_dq_coop",
            (BackwardShape::Coop(_), _) => "backward_dkdv_coop",
        }
    }

    /// Storage bindings 1, 2, ... in order.
    pub(super) fn bindings(&self) -> &'static [Access] {
        use Access::{Read, ReadWrite};
        match self.pass {
            // weights, vectors, gradient
            _ if self.is_product() => &[Read, Read, ReadWrite],
            // q, k, v, dout, terms, dk, dv
            Pass::DkDv => &[Read, Read, Read, Read, Read, ReadWrite, ReadWrite],
            // q, k, v, dout, and softmax_state, terms; terms, weights; terms, dq
            _ => &[Read, Read, Read, Read, Read, ReadWrite],
        }
    }

    /// Whether it multiplies the weights that an earlier pass has left in memory.
    pub(super) fn is_product(&self) -> bool {
        matches!(self.variant.shape, BackwardShape::Products(_))
            && matches!(self.pass, Pass::Dq | Pass::Dk | Pass::Dv)
    }

    /// Constants of the shader.
    pub(super) fn constants(&self) -> Vec<(&'static str, u32)> {
        self.variant.constants(self.pass)
    }
}

impl fmt::Display for BackwardVariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.shape {
            BackwardShape::Tile => "backward_*_tile",
            BackwardShape::Uniform => "backward_*_rows, shared loads",
            BackwardShape::Products(_) => "backward_weights, backward_gradient",
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
