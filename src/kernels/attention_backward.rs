//! The backward of attention: its kernels, and which of them a device gets.
//!
//! First a sweep leaves the sums of each row ([`Pass::Means`]). Then dq is computed, and dk with dv, each from scores of its own; on
//! drivers that compile that badly, weights are written to memory and gradients are products of matrices.
//!
//! | tier | shaders | for |
//! |---|---|---|
//! | tile | `attention/backward_{means,dq,dkdv}_tile.wgsl` | GPUs; other software drivers |
//! | coop | `attention/backward_{means,dq,dkdv}_coop.wgsl` | GPUs with cooperative matrices, tensors stored as f16 |
//! | rows | `software/backward_{means,dq,dkdv}_rows.wgsl` | CPUs whose driver loads an address that all lanes share once |
//! | broadcast | `software/backward_{means,weights,gradient}_broadcast.wgsl` | CPUs with subgroups of eight lanes whose driver loads once a lane |

use std::fmt;
use std::time::Duration;

use super::choice::{Choice, reasons};
use super::cooperative::CoopTile;
use super::family::{Family, attention_fields, gpu_tiers, invalid};
use super::software::LaneGroups;
use super::software::attention_backward::{self as software, MOST_ROWS_HEAD_DIM, ProductTile};
use super::{Access, AttentionParams, Fields, Kernel, KernelSpec, ParamsInfo, Pass, Segments};
use crate::config::{DilatedAttentionConfig, MAX_HEAD_DIM};
use crate::device::{DeviceFacts, KernelTier, Processor, Storage};
use crate::error::Result;

/// Largest heads that the kernels with cooperative matrices compute: two operands and up to two sums are kept in registers.
const MOST_COOP_HEAD_DIM: u32 = 128;

/// Vectors that a subgroup of these owns.
const COOP_ROWS: u32 = 16;

/// How the work is laid out; see the shader files for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BackwardLayout {
    /// Tiles of 32 rows by 32 keys in workgroup memory.
    Tile,
    /// Cooperative matrices.
    Coop(CoopTile),
    /// Lanes own rows (or keys) and load each staged vector that those meet together.
    Rows(LaneGroups),
    /// Products of matrices, by way of the weights of a window of rows and keys.
    Broadcast(ProductTile),
}

/// The backward kernels with their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BackwardVariant {
    /// How the work is laid out.
    pub layout: BackwardLayout,
    /// Elements in one head.
    pub head_dim: u32,
    /// How inputs and gradients are stored.
    pub storage: Storage,
}

/// What the choice of the backward kernels depends on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BackwardFamily {
    pub segments: Segments,
    pub storage: Storage,
}

impl BackwardFamily {
    pub fn of(config: &DilatedAttentionConfig, storage: Storage) -> Self {
        Self {
            segments: Segments::of(config),
            storage,
        }
    }

    fn with(&self, layout: BackwardLayout) -> BackwardVariant {
        BackwardVariant {
            layout,
            head_dim: self.segments.head_dim,
            storage: self.storage,
        }
    }

    /// With the largest tile that fits.
    fn cooperative(&self, facts: &DeviceFacts) -> Result<BackwardVariant> {
        let matrix = CoopTile::matrix_for(self.storage, facts)?;
        CoopTile::check_head_dim(self.segments.head_dim, MOST_COOP_HEAD_DIM)?;
        CoopTile::candidates(matrix, COOP_ROWS)
            .map(|tile| self.with(BackwardLayout::Coop(tile)))
            .find(|variant| variant.most_memory_bytes() <= facts.max_workgroup_memory_bytes)
            .ok_or_else(|| CoopTile::no_room(facts))
    }
}

impl Family for BackwardFamily {
    type Variant = BackwardVariant;

    fn suited(&self, facts: &DeviceFacts) -> Vec<(KernelTier, &'static str)> {
        match facts.processor {
            Processor::Gpu => gpu_tiers(facts),
            Processor::Cpu {
                uniform_loads: true,
                ..
            } if self.segments.head_dim <= MOST_ROWS_HEAD_DIM => {
                vec![(KernelTier::Rows, reasons::UNIFORM_LOADS)]
            }
            Processor::Cpu {
                uniform_loads: true,
                ..
            } => vec![(KernelTier::Tile, reasons::WIDE_HEADS)],
            Processor::Cpu { .. } => vec![
                (KernelTier::Broadcast, reasons::BROADCASTS),
                (KernelTier::Tile, reasons::LOADS_PER_LANE),
            ],
        }
    }

    fn of_device_tier(&self, tier: KernelTier, facts: &DeviceFacts) -> Result<BackwardVariant> {
        let head_dim = self.segments.head_dim;
        Ok(match tier {
            KernelTier::Tile => self.tile(),
            KernelTier::Rows => self.with(BackwardLayout::Rows(software::fitting(
                &self.segments,
                facts,
            ))),
            KernelTier::Broadcast => self.with(BackwardLayout::Broadcast(ProductTile::choose(
                head_dim, facts,
            ))),
            KernelTier::Coop8 | KernelTier::Coop16 => self.cooperative(facts)?,
        })
    }

    fn tile(&self) -> BackwardVariant {
        self.with(BackwardLayout::Tile)
    }

    fn check(&self, variant: BackwardVariant, facts: &DeviceFacts) -> Result<()> {
        variant.check(self.segments.head_dim, facts)
    }

    fn alternatives(&self, variant: BackwardVariant) -> Vec<BackwardVariant> {
        match variant.layout {
            BackwardLayout::Rows(lanes) if lanes.groups > 1 => {
                let groups = lanes.groups / 2;
                let half = BackwardLayout::Rows(LaneGroups { groups, ..lanes });
                vec![self.with(half)]
            }
            _ => Vec::new(),
        }
    }

    fn compile_time(&self, variant: BackwardVariant, facts: &DeviceFacts) -> Option<Duration> {
        let seconds = match (facts.processor, variant.layout) {
            (_, BackwardLayout::Coop(_)) => return None,
            (Processor::Gpu, BackwardLayout::Tile) => 1,
            (Processor::Gpu, _) => return None,
            (Processor::Cpu { uniform_loads, .. }, layout) => match (layout, uniform_loads) {
                (BackwardLayout::Tile, true) => 5,
                (BackwardLayout::Rows(_), true) if variant.head_dim <= 32 => 2,
                (BackwardLayout::Rows(_), true) if variant.head_dim <= 128 => 8,
                (BackwardLayout::Tile, false) => 16,
                (BackwardLayout::Broadcast(_), true) => 4,
                (BackwardLayout::Broadcast(_), false) => 12,
                _ => return None,
            },
        };
        Some(Duration::from_secs(seconds))
    }

    fn key(&self) -> String {
        self.segments.key("attention_backward")
    }

    fn variant_key(variant: &BackwardVariant) -> String {
        variant.fields(Pass::Means).key(variant.name(Pass::Means))
    }
}

impl BackwardVariant {
    /// The kernels that measured best on such a device; see docs/performance.md.
    pub fn choose(config: &DilatedAttentionConfig, storage: Storage, facts: &DeviceFacts) -> Self {
        Self::choice(config, storage, facts).variant
    }

    /// As [`choose`](Self::choose), with the reason.
    pub fn choice(
        config: &DilatedAttentionConfig,
        storage: Storage,
        facts: &DeviceFacts,
    ) -> Choice<Self> {
        BackwardFamily::of(config, storage).choice(facts)
    }

    /// The kernels of a tier.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`](crate::Error::InvalidConfig) or [`Error::BindingTooSmall`](crate::Error::BindingTooSmall) with the
    /// reason why there are none for such tensors on such a device.
    pub fn of_tier(
        tier: KernelTier,
        config: &DilatedAttentionConfig,
        storage: Storage,
        facts: &DeviceFacts,
    ) -> Result<Self> {
        BackwardFamily::of(config, storage).of_tier(tier, facts)
    }

    /// The kernels with cooperative matrices, with the largest tile that fits.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`](crate::Error::InvalidConfig) with the reason why there are none for such tensors on such a device.
    pub fn cooperative(head_dim: u32, storage: Storage, facts: &DeviceFacts) -> Result<Self> {
        let segments = Segments::long(head_dim);
        BackwardFamily { segments, storage }.cooperative(facts)
    }

    /// Whether it multiplies cooperative matrices.
    pub fn is_cooperative(&self) -> bool {
        matches!(self.layout, BackwardLayout::Coop(_))
    }

    /// How weights are laid out, where they are kept in memory.
    pub(crate) fn product_tile(&self) -> Option<ProductTile> {
        match self.layout {
            BackwardLayout::Broadcast(tile) => Some(tile),
            _ => None,
        }
    }

    /// Rows, or keys, that one workgroup computes.
    pub fn tile(&self) -> u32 {
        match self.layout {
            BackwardLayout::Tile => 32,
            BackwardLayout::Coop(tile) => tile.vectors(),
            BackwardLayout::Rows(lanes) => software::rows(lanes, self.head_dim),
            BackwardLayout::Broadcast(tile) => tile.side(),
        }
    }

    /// What is computed of each part of a branch, in order, once the sweep of [`Pass::Means`] has left its sums.
    pub fn passes(&self) -> &'static [Pass] {
        match self.layout {
            BackwardLayout::Broadcast(_) => &[Pass::Weights, Pass::Dq, Pass::Dk, Pass::Dv],
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
        computed.then_some(kernel.into())
    }

    /// Workgroups that share the columns of a tile in a pass.
    pub(crate) fn column_tiles(&self, pass: Pass) -> u32 {
        match (self.layout, pass) {
            (BackwardLayout::Broadcast(tile), Pass::Dq | Pass::Dk | Pass::Dv) => {
                tile.column_tiles(self.head_dim)
            }
            _ => 1,
        }
    }

    fn most_memory_bytes(&self) -> u32 {
        [Pass::Means, Pass::Dq, Pass::DkDv]
            .map(|pass| self.memory_bytes(pass))
            .into_iter()
            .fold(0, u32::max)
    }

    /// Bytes of workgroup memory in a pass.
    fn memory_bytes(&self, pass: Pass) -> u32 {
        match self.layout {
            // Chunks of 32 vectors of two operands, 9 vec4 each; sums of 64 threads.
            BackwardLayout::Tile => {
                let sums = if pass == Pass::Means { 2 * 64 * 16 } else { 0 };
                2 * 32 * 9 * 16 + sums
            }
            BackwardLayout::Rows(_) => software::workgroup_memory_bytes(self.head_dim, pass),
            BackwardLayout::Broadcast(_) => 0,
            // Two operands, one or two slabs of weights; two of products; a word for each staged vector; what the rows have.
            BackwardLayout::Coop(tile) => {
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

    /// Name of the shader of a pass.
    fn name(&self, pass: Pass) -> &'static str {
        match (self.layout, pass) {
            (BackwardLayout::Tile, Pass::Means) => "backward_means_tile",
            (BackwardLayout::Tile, Pass::Dq) => "backward_dq_tile",
            (BackwardLayout::Tile, _) => "backward_dkdv_tile",
            (BackwardLayout::Coop(_), Pass::Means) => "backward_means_coop",
            (BackwardLayout::Coop(_), Pass::Dq) => "backward_dq_coop",
            (BackwardLayout::Coop(_), _) => "backward_dkdv_coop",
            (BackwardLayout::Rows(_), Pass::Means) => "backward_means_rows",
            (BackwardLayout::Rows(_), Pass::Dq) => "backward_dq_rows",
            (BackwardLayout::Rows(_), _) => "backward_dkdv_rows",
            (BackwardLayout::Broadcast(_), Pass::Means) => "backward_means_broadcast",
            (BackwardLayout::Broadcast(_), Pass::Weights) => "backward_weights_broadcast",
            (BackwardLayout::Broadcast(_), _) => "backward_gradient_broadcast",
        }
    }

    fn fields(&self, pass: Pass) -> Fields {
        let fields = attention_fields(self.head_dim, self.storage);
        match self.layout {
            BackwardLayout::Tile => fields,
            BackwardLayout::Coop(tile) => fields.and(tile.fields()),
            BackwardLayout::Rows(lanes) => fields.and(software::fields(lanes, self.head_dim)),
            BackwardLayout::Broadcast(tile) => fields.and(tile.fields(self.head_dim, pass)),
        }
    }

    /// Whether the kernels compute heads of `head_dim` on a device with `facts`.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`](crate::Error::InvalidConfig) when they do not, [`Error::BindingTooSmall`](crate::Error::BindingTooSmall)
    /// when no binding covers the weights of one tile.
    pub fn check(&self, head_dim: u32, facts: &DeviceFacts) -> Result<()> {
        if self.head_dim != head_dim || head_dim > MAX_HEAD_DIM {
            return invalid(
                "head_dim of the kernel",
                self.head_dim,
                "the configuration's",
            );
        }
        self.storage.check(facts)?;
        match self.layout {
            BackwardLayout::Tile => {}
            BackwardLayout::Coop(tile) => {
                tile.check(self.storage, facts)?;
                CoopTile::check_head_dim(head_dim, MOST_COOP_HEAD_DIM)?;
                if tile.rows != COOP_ROWS {
                    return invalid("rows of the kernel", tile.rows, "16");
                }
            }
            BackwardLayout::Rows(lanes) => lanes.check()?,
            BackwardLayout::Broadcast(tile) => {
                KernelTier::Broadcast.check(facts)?;
                tile.check(head_dim, facts)?;
            }
        }
        let bytes = self.most_memory_bytes();
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

    /// Whether it multiplies the weights that an earlier pass has left in memory.
    fn is_product(&self) -> bool {
        self.variant.product_tile().is_some() && matches!(self.pass, Pass::Dq | Pass::Dk | Pass::Dv)
    }
}

impl KernelSpec for BackwardKernel {
    fn name(&self) -> &'static str {
        self.variant.name(self.pass)
    }

    fn fields(&self) -> Fields {
        self.variant.fields(self.pass)
    }

    fn bindings(&self) -> &'static [Access] {
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

    fn params(&self) -> ParamsInfo {
        ParamsInfo::of::<AttentionParams>()
    }

    fn workgroup_work(&self, params: &[u8]) -> u64 {
        let Self { variant, pass } = self;
        let others = match pass {
            Pass::Forward | Pass::Means | Pass::Dq => AttentionParams::keys(params),
            Pass::Weights => variant.tile(),
            Pass::Dk | Pass::Dv | Pass::DkDv => AttentionParams::rows(params),
        };
        let products = match pass {
            _ if self.is_product() => 1,
            // With matrices, one more: of what f16 has left of the weights.
            Pass::Dq if variant.is_cooperative() => 4,
            Pass::Dq => 3,
            Pass::DkDv => 4,
            _ => 2,
        };
        let pairs = u64::from(variant.tile()) * u64::from(others) * u64::from(variant.head_dim);
        products * pairs / u64::from(variant.column_tiles(*pass))
    }

    fn tier(&self) -> Option<KernelTier> {
        Some(match self.variant.layout {
            BackwardLayout::Tile => KernelTier::Tile,
            BackwardLayout::Coop(tile) => KernelTier::of_matrix(tile.matrix),
            BackwardLayout::Rows(_) => KernelTier::Rows,
            BackwardLayout::Broadcast(_) => KernelTier::Broadcast,
        })
    }

    fn workgroup_memory_bytes(&self) -> Option<u32> {
        Some(self.variant.memory_bytes(self.pass))
    }

    fn all(head_dim: u32, storage: Storage, facts: &DeviceFacts) -> Vec<Self> {
        let segments = Segments::long(head_dim);
        let family = BackwardFamily { segments, storage };
        let tiers = KernelTier::ALL.into_iter();
        let variants = tiers.filter_map(|tier| family.of_tier(tier, facts).ok());
        let kernels = variants.flat_map(|variant| {
            let passes = [&[Pass::Means], variant.passes()].concat();
            passes.into_iter().map(move |pass| Self { variant, pass })
        });
        kernels.collect()
    }
}

impl fmt::Display for BackwardVariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.layout {
            BackwardLayout::Tile => "backward_*_tile",
            BackwardLayout::Coop(_) => "backward_*_coop",
            BackwardLayout::Rows(_) => "backward_*_rows",
            BackwardLayout::Broadcast(_) => "backward_*_broadcast",
        };
        write!(
            f,
            "{name} ({}, {} rows or keys a workgroup)",
            self.storage.dtype(),
            self.tile()
        )
    }
}
