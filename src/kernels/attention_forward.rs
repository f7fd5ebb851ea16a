//! The forward of attention: its kernels, and which of them a device gets.
//!
//! | tier | shader | for |
//! |---|---|---|
//! | tile | `attention/forward_tile.wgsl` | GPUs; other software drivers |
//! | coop | `attention/forward_coop.wgsl` | GPUs with cooperative matrices, tensors stored as f16 |
//! | rows | `software/forward_rows.wgsl` | CPUs whose driver loads an address that all lanes share once |
//! | broadcast | `software/forward_broadcast.wgsl` | CPUs with subgroups of eight lanes whose driver loads once a lane |
//!
//! All compute the same. Cooperative matrices are not chosen on CPUs: lavapipe multiplies them at a tenth of its ceiling.

use std::fmt;
use std::time::Duration;

use super::choice::{Choice, reasons};
use super::cooperative::CoopTile;
use super::family::{Family, attention_fields, gpu_tiers, invalid};
use super::software::LaneGroups;
use super::software::attention_forward::Handed;
use super::{Access, AttentionParams, Fields, KernelSpec, ParamsInfo, Segments};
use crate::config::{DilatedAttentionConfig, MAX_HEAD_DIM};
use crate::device::{DeviceFacts, KernelTier, Processor, Storage};
use crate::error::Result;

/// Largest heads that the kernel with cooperative matrices computes: its queries and its output are kept in registers.
const MOST_COOP_HEAD_DIM: u32 = 128;

/// How the work is laid out; see the shader files for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ForwardLayout {
    /// Tiles of keys, values and weights in workgroup memory.
    Tile,
    /// Cooperative matrices.
    Coop(CoopTile),
    /// Lanes own rows and load each staged key together.
    Rows(LaneGroups),
    /// Lanes own rows; each loads another staged key, and subgroup operations hand it on.
    Broadcast(LaneGroups),
}

/// A forward kernel with its numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ForwardVariant {
    /// How the work is laid out.
    pub layout: ForwardLayout,
    /// Elements in one head.
    pub head_dim: u32,
    /// How q, k, v and the output are stored.
    pub storage: Storage,
}

/// What the choice of a forward kernel depends on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ForwardFamily {
    pub segments: Segments,
    pub storage: Storage,
}

impl ForwardFamily {
    pub fn of(config: &DilatedAttentionConfig, storage: Storage) -> Self {
        Self {
            segments: Segments::of(config),
            storage,
        }
    }

    fn with(&self, layout: ForwardLayout) -> ForwardVariant {
        ForwardVariant {
            layout,
            head_dim: self.segments.head_dim,
            storage: self.storage,
        }
    }

    /// With the largest tile that fits.
    fn cooperative(&self, facts: &DeviceFacts) -> Result<ForwardVariant> {
        let matrix = CoopTile::matrix_for(self.storage, facts)?;
        CoopTile::check_head_dim(self.segments.head_dim, MOST_COOP_HEAD_DIM)?;
        // Each lane owns whole rows, and a matrix of keys should meet two of queries.
        let rows = matrix.lanes.max(2 * matrix.size);
        CoopTile::candidates(matrix, rows)
            .map(|tile| self.with(ForwardLayout::Coop(tile)))
            .find(|variant| variant.memory_bytes() <= facts.max_workgroup_memory_bytes)
            .ok_or_else(|| CoopTile::no_room(facts))
    }
}

impl Family for ForwardFamily {
    type Variant = ForwardVariant;

    fn suited(&self, facts: &DeviceFacts) -> Vec<(KernelTier, &'static str)> {
        match facts.processor {
            Processor::Gpu => gpu_tiers(facts),
            Processor::Cpu {
                uniform_loads: true,
                ..
            } => vec![(KernelTier::Rows, reasons::UNIFORM_LOADS)],
            Processor::Cpu { .. } => vec![
                (KernelTier::Broadcast, reasons::BROADCASTS),
                (KernelTier::Tile, reasons::LOADS_PER_LANE),
            ],
        }
    }

    fn of_device_tier(&self, tier: KernelTier, facts: &DeviceFacts) -> Result<ForwardVariant> {
        let fitting = |handed: Handed| handed.fitting(&self.segments, facts);
        Ok(match tier {
            KernelTier::Tile => self.tile(),
            KernelTier::Rows => self.with(ForwardLayout::Rows(fitting(Handed::Loaded))),
            KernelTier::Broadcast => {
                self.with(ForwardLayout::Broadcast(fitting(Handed::Broadcast)))
            }
            KernelTier::Coop8 | KernelTier::Coop16 => self.cooperative(facts)?,
        })
    }

    fn tile(&self) -> ForwardVariant {
        self.with(ForwardLayout::Tile)
    }

    fn check(&self, variant: ForwardVariant, facts: &DeviceFacts) -> Result<()> {
        variant.check(self.segments.head_dim, facts)
    }

    fn alternatives(&self, _: ForwardVariant) -> Vec<ForwardVariant> {
        Vec::new()
    }

    fn compile_time(&self, variant: ForwardVariant, facts: &DeviceFacts) -> Option<Duration> {
        let seconds = match (facts.processor, variant.layout) {
            // Known to be faster on GPUs and slower on CPUs; f16 only, and what is measured is f32.
            (_, ForwardLayout::Coop(_)) => return None,
            (Processor::Gpu, ForwardLayout::Tile) => 1,
            // Rows in registers are more than a GPU's lane has.
            (Processor::Gpu, _) => return None,
            (Processor::Cpu { uniform_loads, .. }, layout) => match (layout, uniform_loads) {
                (ForwardLayout::Tile, true) => 3,
                (_, true) => 2,
                (ForwardLayout::Tile, false) => 18,
                (ForwardLayout::Broadcast(_), false) => 12,
                (_, false) if variant.head_dim <= 8 => 12,
                (_, false) => return None,
            },
        };
        Some(Duration::from_secs(seconds))
    }

    fn key(&self) -> String {
        self.segments.key("attention_forward")
    }

    fn variant_key(variant: &ForwardVariant) -> String {
        variant.fields().key(variant.name())
    }
}

impl ForwardVariant {
    /// The kernel that measured best on such a device; see docs/performance.md.
    pub fn choose(config: &DilatedAttentionConfig, storage: Storage, facts: &DeviceFacts) -> Self {
        Self::choice(config, storage, facts).variant
    }

    /// As [`choose`](Self::choose), with the reason.
    pub fn choice(
        config: &DilatedAttentionConfig,
        storage: Storage,
        facts: &DeviceFacts,
    ) -> Choice<Self> {
        ForwardFamily::of(config, storage).choice(facts)
    }

    /// The kernel of a tier.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`](crate::Error::InvalidConfig) with the reason why there is none for such tensors on such a device.
    pub fn of_tier(
        tier: KernelTier,
        config: &DilatedAttentionConfig,
        storage: Storage,
        facts: &DeviceFacts,
    ) -> Result<Self> {
        ForwardFamily::of(config, storage).of_tier(tier, facts)
    }

    /// The kernel with cooperative matrices, with the largest tile that fits.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`](crate::Error::InvalidConfig) with the reason why there is none for such tensors on such a device.
    pub fn cooperative(head_dim: u32, storage: Storage, facts: &DeviceFacts) -> Result<Self> {
        let segments = Segments::long(head_dim);
        ForwardFamily { segments, storage }.cooperative(facts)
    }

    /// Whether it multiplies cooperative matrices.
    pub fn is_cooperative(&self) -> bool {
        matches!(self.layout, ForwardLayout::Coop(_))
    }

    /// Rows that one workgroup computes.
    pub fn rows_per_workgroup(&self) -> u32 {
        match self.layout {
            ForwardLayout::Tile if self.head_dim <= 128 => 64,
            ForwardLayout::Tile => 32,
            ForwardLayout::Coop(tile) => tile.vectors(),
            ForwardLayout::Rows(lanes) => Handed::Loaded.rows(lanes, self.head_dim),
            ForwardLayout::Broadcast(lanes) => Handed::Broadcast.rows(lanes, self.head_dim),
        }
    }

    /// Bytes of workgroup memory.
    fn memory_bytes(&self) -> u32 {
        match self.layout {
            // A chunk of q or weights (9 vec4 a row), a chunk of k or v (9 vec4 for 32 keys), maxima (2 vec4 a row).
            ForwardLayout::Tile => (self.rows_per_workgroup() * (9 + 2) + 32 * 9) * 16,
            ForwardLayout::Rows(_) => Handed::Loaded.workgroup_memory_bytes(self.head_dim),
            ForwardLayout::Broadcast(_) => Handed::Broadcast.workgroup_memory_bytes(self.head_dim),
            // Keys, values, weights; scores; a word for each key, a flag, two factors for each row.
            ForwardLayout::Coop(tile) => {
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

    /// Whether the kernel computes heads of `head_dim` on a device with `facts`.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`](crate::Error::InvalidConfig) when it does not.
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
            ForwardLayout::Tile => {}
            ForwardLayout::Coop(tile) => {
                tile.check(self.storage, facts)?;
                CoopTile::check_head_dim(head_dim, MOST_COOP_HEAD_DIM)?;
                if !tile.rows.is_multiple_of(tile.matrix.lanes) {
                    return invalid("rows of the kernel", tile.rows, "a multiple of the lanes");
                }
            }
            ForwardLayout::Rows(lanes) => lanes.check()?,
            ForwardLayout::Broadcast(lanes) => {
                lanes.check()?;
                KernelTier::Broadcast.check(facts)?;
            }
        }
        if self.memory_bytes() > facts.max_workgroup_memory_bytes {
            return invalid(
                "workgroup memory of the kernel in bytes",
                self.memory_bytes(),
                "at most what the device offers",
            );
        }
        Ok(())
    }
}

impl KernelSpec for ForwardVariant {
    fn name(&self) -> &'static str {
        match self.layout {
            ForwardLayout::Tile => "forward_tile",
            ForwardLayout::Coop(_) => "forward_coop",
            ForwardLayout::Rows(_) => "forward_rows",
            ForwardLayout::Broadcast(_) => "forward_broadcast",
        }
    }

    fn fields(&self) -> Fields {
        let fields = attention_fields(self.head_dim, self.storage);
        match self.layout {
            ForwardLayout::Tile => fields,
            ForwardLayout::Coop(tile) => fields.and(tile.fields()),
            ForwardLayout::Rows(lanes) => fields.and(Handed::Loaded.fields(lanes, self.head_dim)),
            ForwardLayout::Broadcast(lanes) => {
                fields.and(Handed::Broadcast.fields(lanes, self.head_dim))
            }
        }
    }

    fn bindings(&self) -> &'static [Access] {
        // q, k, v, out, softmax_state
        &[
            Access::Read,
            Access::Read,
            Access::Read,
            Access::ReadWrite,
            Access::ReadWrite,
        ]
    }

    fn params(&self) -> ParamsInfo {
        ParamsInfo::of::<AttentionParams>()
    }

    fn workgroup_work(&self, params: &[u8]) -> u64 {
        let pairs = u64::from(self.rows_per_workgroup()) * u64::from(AttentionParams::keys(params));
        2 * pairs * u64::from(self.head_dim)
    }

    fn tier(&self) -> Option<KernelTier> {
        Some(match self.layout {
            ForwardLayout::Tile => KernelTier::Tile,
            ForwardLayout::Coop(tile) => KernelTier::of_matrix(tile.matrix),
            ForwardLayout::Rows(_) => KernelTier::Rows,
            ForwardLayout::Broadcast(_) => KernelTier::Broadcast,
        })
    }

    fn workgroup_memory_bytes(&self) -> Option<u32> {
        Some(self.memory_bytes())
    }

    fn all(head_dim: u32, storage: Storage, facts: &DeviceFacts) -> Vec<Self> {
        let segments = Segments::long(head_dim);
        let family = ForwardFamily { segments, storage };
        let tiers = KernelTier::ALL.into_iter();
        tiers
            .filter_map(|tier| family.of_tier(tier, facts).ok())
            .collect()
    }
}

impl fmt::Display for ForwardVariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} ({}, {} rows a workgroup, {} bytes of workgroup memory)",
            self.name(),
            self.storage.dtype(),
            self.rows_per_workgroup(),
            self.memory_bytes()
        )
    }
}
