//! The kernels of the forward of attention, and which of them a device gets.
//!
//! | tier | shader | for |
//! |---|---|---|
//! | tile | `attention/forward_tile.wgsl` | GPUs; other software drivers |
//! | coop | `attention/forward_coop.wgsl` | GPUs with cooperative matrices, f16 tensors |
//! | rows | `software/forward_rows.wgsl` | CPUs whose driver loads an address that all lanes share once |
//! | broadcast | `software/forward_broadcast.wgsl` | other CPUs with subgroups of 8 lanes |
//!
//! All have the same result. CPUs do not get cooperative matrices: lavapipe multiplies them at a tenth of its peak rate.

use super::attention::{AnyLayout, AttentionFamily, AttentionLayout, AttentionVariant, Layout};
use super::choice::reasons;
use super::cooperative::CoopTile;
use super::family::{Family, gpu_tiers};
use super::software::LaneGroups;
use super::software::attention_forward::Handed;
use super::{Access, AttentionParams, Fields, KernelSpec, ParamsInfo, Pass, Segments};
use crate::device::{CooperativeMatrix, DeviceCaps, ElementFormat, KernelTier, Processor};
use crate::error::Result;

/// How a forward kernel lays out its work.
pub type ForwardLayout = Layout<LaneGroups>;

/// A forward kernel with the numbers it is compiled for.
pub type ForwardVariant = AttentionVariant<ForwardLayout>;

/// The forward kernels to choose from.
pub type ForwardFamily = AttentionFamily<ForwardLayout>;

impl AttentionLayout for ForwardLayout {
    const DIRECTION: &'static str = "attention_forward";
    const PASSES: &'static [Pass] = &[Pass::Forward];

    fn suited(_: u32, caps: &DeviceCaps) -> Vec<(KernelTier, &'static str)> {
        match caps.processor {
            Processor::Gpu => gpu_tiers(caps),
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

    fn rows(segments: &Segments, caps: &DeviceCaps) -> Self {
        Self::Rows(Handed::Loaded.fitting(segments, caps))
    }

    fn broadcast(segments: &Segments, caps: &DeviceCaps) -> Self {
        Self::Broadcast(Handed::Broadcast.fitting(segments, caps))
    }

    /// Enough rows that each lane owns whole ones, and that each matrix of keys is multiplied with at least two matrices of queries.
    fn coop_rows(matrix: CooperativeMatrix) -> u32 {
        matrix.lanes.max(2 * matrix.size)
    }

    fn rows_per_workgroup(self, head_dim: u32) -> u32 {
        match self {
            Self::Tile if head_dim <= 128 => 64,
            Self::Tile => 32,
            Self::Coop(tile) => tile.vectors(),
            Self::Rows(lanes) => Handed::Loaded.rows(lanes, head_dim),
            Self::Broadcast(lanes) => Handed::Broadcast.rows(lanes, head_dim),
        }
    }

    fn memory_bytes(self, head_dim: u32, _: Pass) -> u32 {
        match self {
            // A chunk of q or of weights (9 vec4 for each row), a chunk of k or v (9 vec4 for each of 32 keys), maxima (2 vec4 for
            // each row).
            Self::Tile => (self.rows_per_workgroup(head_dim) * (9 + 2) + 32 * 9) * 16,
            Self::Rows(_) => Handed::Loaded.workgroup_memory_bytes(head_dim),
            Self::Broadcast(_) => Handed::Broadcast.workgroup_memory_bytes(head_dim),
            // In order: keys and values (f16), weights (f16), scores (f32), a flag word for each key, a flag, two factors for each row.
            Self::Coop(tile) => {
                let columns = tile.column_blocks(head_dim) * tile.matrix.size;
                CoopTile::f16_bytes(2 * tile.staged, columns)
                    + CoopTile::f16_bytes(tile.vectors(), tile.staged)
                    + CoopTile::f32_bytes(tile.vectors(), tile.staged)
                    + 4 * tile.staged
                    + 16
                    + 8 * tile.vectors()
            }
        }
    }

    fn check(self, _: u32, _: &DeviceCaps) -> Result<()> {
        match self {
            Self::Tile | Self::Coop(_) => Ok(()),
            Self::Rows(lanes) | Self::Broadcast(lanes) => lanes.check(),
        }
    }

    fn alternatives(self) -> Vec<Self> {
        Vec::new()
    }

    fn compile_seconds(self, head_dim: u32, processor: Processor) -> Option<u64> {
        match (processor, self) {
            (Processor::Gpu, Self::Tile) => Some(1),
            // These keep whole rows in registers: more than a lane of a GPU has.
            (Processor::Gpu, _) => None,
            (Processor::Cpu { uniform_loads, .. }, layout) => match (layout, uniform_loads) {
                (Self::Tile, true) => Some(3),
                (_, true) => Some(2),
                (Self::Tile, false) => Some(18),
                (Self::Broadcast(_), false) => Some(12),
                (_, false) if head_dim <= 8 => Some(12),
                (_, false) => None,
            },
        }
    }

    fn title(self) -> &'static str {
        self.name(Pass::Forward)
    }

    fn name(self, _: Pass) -> &'static str {
        match self {
            Self::Tile => "forward_tile",
            Self::Coop(_) => "forward_coop",
            Self::Rows(_) => "forward_rows",
            Self::Broadcast(_) => "forward_broadcast",
        }
    }

    fn fields(self, head_dim: u32, _: Pass) -> Fields {
        match self {
            Self::Tile => Fields::new(),
            Self::Coop(tile) => tile.fields(),
            Self::Rows(lanes) => Handed::Loaded.fields(lanes, head_dim),
            Self::Broadcast(lanes) => Handed::Broadcast.fields(lanes, head_dim),
        }
    }
}

impl KernelSpec for ForwardVariant {
    fn name(&self) -> &'static str {
        self.layout.name(Pass::Forward)
    }

    fn fields(&self) -> Fields {
        AttentionVariant::fields(self, Pass::Forward)
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
        Some(self.layout.tier())
    }

    fn workgroup_memory_bytes(&self) -> Option<u32> {
        Some(self.layout.memory_bytes(self.head_dim, Pass::Forward))
    }

    fn all(head_dim: u32, format: ElementFormat, caps: &DeviceCaps) -> Vec<Self> {
        ForwardFamily::of_long_segments(head_dim as usize, format).of_all_tiers(caps)
    }
}
