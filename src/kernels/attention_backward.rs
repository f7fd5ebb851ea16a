//! The kernels of the backward of attention, and which of them a device gets.
//!
//! A first pass, the sweep, leaves sums for each row ([`Pass::BranchDelta`]). Two more passes compute dq, and dk with dv; each
//! computes the scores again. Some software drivers compile such passes badly. The `broadcast` tier is for them: it writes the
//! softmax weights to memory once, and computes the gradients as matrix products.
//!
//! | tier | shaders | for |
//! |---|---|---|
//! | tile | `attention/backward_{branch_delta,dq,dkdv}_tile.wgsl` | GPUs; other software drivers |
//! | coop | `attention/backward_{branch_delta,dq,dkdv}_coop.wgsl` | GPUs with cooperative matrices, f16 tensors |
//! | rows | `software/backward_{branch_delta,dq,dkdv}_rows.wgsl` | CPUs whose driver loads an address that all lanes share once |
//! | broadcast | `software/backward_{branch_delta,weights,gradient}_broadcast.wgsl` | other CPUs with subgroups of 8 lanes |

use super::attention::{AnyLayout, AttentionFamily, AttentionLayout, AttentionVariant, Layout};
use super::choice::reasons;
use super::cooperative::CoopTile;
use super::family::{Family, gpu_tiers};
use super::software::LaneGroups;
use super::software::attention_backward::{self as software, MOST_ROWS_HEAD_DIM, WeightsTile};
use super::{Access, AttentionParams, Fields, Kernel, KernelSpec, ParamsInfo, Pass, Segments};
use crate::device::{CooperativeMatrix, DeviceCaps, ElementFormat, KernelTier, Processor};
use crate::error::Result;

/// Rows (or keys) that a subgroup with cooperative matrices owns. Two operands and up to two sums of each stay in registers.
const COOP_ROWS: u32 = 16;

/// How a backward kernel lays out its work.
pub type BackwardLayout = Layout<WeightsTile>;

/// The backward kernels with the numbers they are compiled for.
pub type BackwardVariant = AttentionVariant<BackwardLayout>;

/// The backward kernels to choose from.
pub type BackwardFamily = AttentionFamily<BackwardLayout>;

impl AttentionLayout for BackwardLayout {
    const DIRECTION: &'static str = "attention_backward";
    const PASSES: &'static [Pass] = &[Pass::BranchDelta, Pass::Dq, Pass::DkDv];

    fn suited(head_dim: u32, caps: &DeviceCaps) -> Vec<(KernelTier, &'static str)> {
        match caps.processor {
            Processor::Gpu => gpu_tiers(caps),
            Processor::Cpu {
                uniform_loads: true,
                ..
            } if head_dim <= MOST_ROWS_HEAD_DIM => {
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

    fn rows(segments: &Segments, caps: &DeviceCaps) -> Self {
        Self::Rows(software::fitting(segments, caps))
    }

    fn broadcast(segments: &Segments, caps: &DeviceCaps) -> Self {
        Self::Broadcast(WeightsTile::choose(segments.head_dim, caps))
    }

    fn coop_rows(_: CooperativeMatrix) -> u32 {
        COOP_ROWS
    }

    fn rows_per_workgroup(self, head_dim: u32) -> u32 {
        match self {
            Self::Tile => 32,
            Self::Coop(tile) => tile.vectors(),
            Self::Rows(lanes) => software::rows(lanes, head_dim),
            Self::Broadcast(tile) => tile.side(),
        }
    }

    fn memory_bytes(self, head_dim: u32, pass: Pass) -> u32 {
        match self {
            // A chunk of 32 vectors of 9 vec4 for each of two operands; in the sweep also two vec4 sums of each of 64 threads.
            Self::Tile => {
                let sums = if pass == Pass::BranchDelta {
                    2 * 64 * 16
                } else {
                    0
                };
                2 * 32 * 9 * 16 + sums
            }
            Self::Rows(_) => software::workgroup_memory_bytes(head_dim, pass),
            Self::Broadcast(_) => 0,
            // In order: two staged operands (f16), one or two slabs of weights (f16), two slabs of products (f32), a flag word for
            // each staged vector, statistics of rows.
            Self::Coop(tile) => {
                let columns = tile.column_blocks(head_dim) * tile.matrix.size;
                let (slabs, of_rows) = match pass {
                    Pass::BranchDelta => (1, 4 * tile.vectors()),
                    Pass::DkDv => (2, 12 * tile.staged),
                    _ => (2, 12 * tile.vectors()),
                };
                CoopTile::f16_bytes(2 * tile.staged, columns)
                    + CoopTile::f16_bytes(slabs * tile.vectors(), tile.staged)
                    + CoopTile::f32_bytes(2 * tile.vectors(), tile.staged)
                    + 4 * tile.staged
                    + of_rows
            }
        }
    }

    fn check(self, head_dim: u32, caps: &DeviceCaps) -> Result<()> {
        match self {
            Self::Tile | Self::Coop(_) => Ok(()),
            Self::Rows(lanes) => lanes.check(),
            Self::Broadcast(tile) => tile.check(head_dim, caps),
        }
    }

    fn alternatives(self) -> Vec<Self> {
        match self {
            Self::Rows(lanes) if lanes.groups > 1 => {
                let groups = lanes.groups / 2;
                vec![Self::Rows(LaneGroups { groups, ..lanes })]
            }
            _ => Vec::new(),
        }
    }

    fn compile_seconds(self, head_dim: u32, processor: Processor) -> Option<u64> {
        match (processor, self) {
            (Processor::Gpu, Self::Tile) => Some(1),
            (Processor::Gpu, _) => None,
            (Processor::Cpu { uniform_loads, .. }, layout) => match (layout, uniform_loads) {
                (Self::Tile, true) => Some(5),
                (Self::Rows(_), true) if head_dim <= 32 => Some(2),
                (Self::Rows(_), true) if head_dim <= 128 => Some(8),
                (Self::Tile, false) => Some(16),
                (Self::Broadcast(_), true) => Some(4),
                (Self::Broadcast(_), false) => Some(12),
                _ => None,
            },
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Tile => "backward_*_tile",
            Self::Coop(_) => "backward_*_coop",
            Self::Rows(_) => "backward_*_rows",
            Self::Broadcast(_) => "backward_*_broadcast",
        }
    }

    fn name(self, pass: Pass) -> &'static str {
        match (self, pass) {
            (Self::Tile, Pass::BranchDelta) => "backward_branch_delta_tile",
            (Self::Tile, Pass::Dq) => "backward_dq_tile",
            (Self::Tile, _) => "backward_dkdv_tile",
            (Self::Coop(_), Pass::BranchDelta) => "backward_branch_delta_coop",
            (Self::Coop(_), Pass::Dq) => "backward_dq_coop",
            (Self::Coop(_), _) => "backward_dkdv_coop",
            (Self::Rows(_), Pass::BranchDelta) => "backward_branch_delta_rows",
            (Self::Rows(_), Pass::Dq) => "backward_dq_rows",
            (Self::Rows(_), _) => "backward_dkdv_rows",
            (Self::Broadcast(_), Pass::BranchDelta) => "backward_branch_delta_broadcast",
            (Self::Broadcast(_), Pass::Weights) => "backward_weights_broadcast",
            (Self::Broadcast(_), _) => "backward_gradient_broadcast",
        }
    }

    fn fields(self, head_dim: u32, pass: Pass) -> Fields {
        match self {
            Self::Tile => Fields::new(),
            Self::Coop(tile) => tile.fields(),
            Self::Rows(lanes) => software::fields(lanes, head_dim),
            Self::Broadcast(tile) => tile.fields(head_dim, pass),
        }
    }
}

impl BackwardVariant {
    /// The tile of the weights in memory; `None` for kernels that keep none.
    pub(crate) fn weights_tile(&self) -> Option<WeightsTile> {
        match self.layout {
            Layout::Broadcast(tile) => Some(tile),
            _ => None,
        }
    }

    /// The passes that follow the sweep ([`Pass::BranchDelta`]) for each part of a branch, in order.
    pub fn passes(&self) -> &'static [Pass] {
        match self.layout {
            Layout::Broadcast(_) => &[Pass::Weights, Pass::Dq, Pass::Dk, Pass::Dv],
            _ => &[Pass::Dq, Pass::DkDv],
        }
    }

    /// The kernel of a pass; `None` unless the pass is [`Pass::BranchDelta`] or one of [`passes`](Self::passes).
    pub fn kernel(&self, pass: Pass) -> Option<Kernel> {
        let computed = pass == Pass::BranchDelta || self.passes().contains(&pass);
        let kernel = BackwardKernel {
            variant: *self,
            pass,
        };
        computed.then_some(kernel.into())
    }

    /// Number of workgroups that the columns of a tile are divided among in a pass.
    pub(crate) fn column_tiles(&self, pass: Pass) -> u32 {
        match (self.layout, pass) {
            (Layout::Broadcast(tile), Pass::Dq | Pass::Dk | Pass::Dv) => {
                tile.column_tiles(self.head_dim)
            }
            _ => 1,
        }
    }
}

/// The kernel of one pass of the backward; see [`BackwardVariant::kernel`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BackwardKernel {
    variant: BackwardVariant,
    pass: Pass,
}

impl BackwardKernel {
    /// The backward that the kernel belongs to.
    pub fn variant(&self) -> BackwardVariant {
        self.variant
    }

    /// The pass that the kernel computes.
    pub fn pass(&self) -> Pass {
        self.pass
    }

    /// Whether the kernel multiplies weights that an earlier pass has left in memory.
    fn is_product(&self) -> bool {
        self.variant.weights_tile().is_some() && matches!(self.pass, Pass::Dq | Pass::Dk | Pass::Dv)
    }
}

impl KernelSpec for BackwardKernel {
    fn name(&self) -> &'static str {
        self.variant.layout.name(self.pass)
    }

    fn fields(&self) -> Fields {
        self.variant.fields(self.pass)
    }

    fn bindings(&self) -> &'static [Access] {
        use Access::{Read, ReadWrite};
        match self.pass {
            // weights, vectors, gradient
            _ if self.is_product() => &[Read, Read, ReadWrite],
            // q, k, v, dout, row statistics, dk, dv
            Pass::DkDv => &[Read, Read, Read, Read, Read, ReadWrite, ReadWrite],
            // q, k, v, dout, then: softmax_state, row statistics (sweep); row statistics, weights; or row statistics, dq
            _ => &[Read, Read, Read, Read, Read, ReadWrite],
        }
    }

    fn params(&self) -> ParamsInfo {
        ParamsInfo::of::<AttentionParams>()
    }

    fn workgroup_work(&self, params: &[u8]) -> u64 {
        let Self { variant, pass } = self;
        let others = match pass {
            Pass::Forward | Pass::BranchDelta | Pass::Dq => AttentionParams::keys(params),
            Pass::Weights => variant.rows_per_workgroup(),
            Pass::Dk | Pass::Dv | Pass::DkDv => AttentionParams::rows(params),
            // Not passes of a backward kernel.
            Pass::PackKeys | Pass::PackGradients | Pass::UnpackGradients => 1,
        };
        let products = match pass {
            _ if self.is_product() => 1,
            // Cooperative matrices take one more product, with the rest that f16 weights lose in rounding.
            Pass::Dq if variant.is_cooperative() => 4,
            Pass::Dq => 3,
            Pass::DkDv => 4,
            _ => 2,
        };
        let pairs = u64::from(variant.rows_per_workgroup())
            * u64::from(others)
            * u64::from(variant.head_dim);
        products * pairs / u64::from(variant.column_tiles(*pass))
    }

    fn tier(&self) -> Option<KernelTier> {
        Some(self.variant.layout.tier())
    }

    fn workgroup_memory_bytes(&self) -> Option<u32> {
        let variant = self.variant;
        Some(variant.layout.memory_bytes(variant.head_dim, self.pass))
    }

    fn all(head_dim: u32, format: ElementFormat, caps: &DeviceCaps) -> Vec<Self> {
        let family = BackwardFamily::of_long_segments(head_dim as usize, format);
        let variants = family.of_all_tiers(caps).into_iter();
        let kernels = variants.flat_map(|variant| {
            let passes = [&[Pass::BranchDelta], variant.passes()].concat();
            passes.into_iter().map(move |pass| Self { variant, pass })
        });
        kernels.collect()
    }
}
