//! What the forward and backward attention kernels have in common: passes, dispatch parameters, variants, and the choice of a variant.

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use super::cooperative::CoopTile;
use super::family::{Family, invalid, no_room};
use super::params::{params, read};
use super::software::LaneGroups;
use super::{Fields, Segments};
use crate::config::{DilatedAttentionConfig, MAX_HEAD_DIM, in_u32};
use crate::device::{CooperativeMatrix, DeviceCaps, ElementFormat, KernelTier, Processor};
use crate::error::Result;

/// What a dispatch of attention computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pass {
    /// The output and its softmax state.
    Forward,
    /// Backward, first pass (the sweep): for each row, the sum over its keys of the softmax weights, and of the weights times `dout . v`.
    BranchDelta,
    /// Backward of the `broadcast` tier: softmax weights and score gradients of a window of rows and keys, written to memory.
    Weights,
    /// Backward: the gradient of the queries.
    Dq,
    /// Backward of the `broadcast` tier: the gradient of the keys, from what [`Weights`](Self::Weights) wrote.
    Dk,
    /// Backward of the `broadcast` tier: the gradient of the values, from what [`Weights`](Self::Weights) wrote.
    Dv,
    /// Backward: the gradients of the keys and values in one pass.
    DkDv,
    /// Copies keys and values of a branch to packed keys.
    PackKeys,
    /// Copies what there is of the gradients of keys and values to packed ones, which the next passes add to.
    PackGradients,
    /// Copies packed gradients of keys and values back.
    UnpackGradients,
}

impl Pass {
    /// Whether a pass of the backward computes a gradient of keys or values.
    pub(crate) fn is_of_keys(self) -> bool {
        matches!(self, Self::Dk | Self::Dv | Self::DkDv)
    }
}

params! {
    /// Parameters of `geometry.wgsl`, which says what each means.
    AttentionParams { seq_len: u32, valid_len: u32, valid_key_len: u32, num_heads: u32, head_begin: u32, head_count: u32, offset_base: u32, offset_div: u32, offset_mod: u32, segment_length: u32, dilation_rate: u32, rows_per_segment: u32, output_stride: u32, segment_begin: u32, segment_count: u32, row_begin: u32, row_end: u32, key_row_begin: u32, key_row_end: u32, flags: u32, scale: f32, scale_log2e: f32, out_scale: f32, q_token0: u32, q_skip: u32, out_token0: u32, out_skip: u32, state_skip: u32, row_stats_skip: u32, first_workgroup: u32, grid_width: u32, num_workgroups: u32, key_origin: u32, key_item_stride: u32, key_segment_stride: u32, key_offset_stride: u32, key_row_stride: u32 }
}
impl AttentionParams {
    /// Causal mask: a row sees only keys up to its own place.
    pub const CAUSAL: u32 = 1;
    /// Padding rows of a segment count as keys of score 0 and value 0 in this dispatch.
    pub const ZERO_KEYS: u32 = 2;
    /// Results are merged with those in the output instead of overwriting them.
    pub const MERGE: u32 = 4;
    /// Padding rows of a segment are written too, as rows with a zero query.
    pub const PHANTOM_ROWS: u32 = 8;
    /// The gradient treats mixing weights as constants: the sweep covers the keys of one branch only, and weights are divided by
    /// the sum that the forward left.
    pub const DETACHED: u32 = 16;

    /// The most keys that a row sees in a dispatch.
    pub(super) fn keys(params: &[u8]) -> u32 {
        let params: Self = read(params);
        let keys = params.key_row_end.saturating_sub(params.key_row_begin);
        keys.min(params.rows_per_segment)
    }

    /// The most rows that see a key in a dispatch.
    pub(super) fn rows(params: &[u8]) -> u32 {
        let params: Self = read(params);
        let rows = params.row_end.saturating_sub(params.row_begin);
        rows.min(params.rows_per_segment)
    }
}

/// An attention kernel with the numbers it is compiled for. For the backward: the kernels of all its passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AttentionVariant<L> {
    /// How the work is divided among threads.
    pub layout: L,
    /// Elements in one head.
    pub head_dim: u32,
    /// Element format of the tensors.
    pub format: ElementFormat,
}

/// How attention kernels lay out their work; see the shader files for each. `B` is what the kernels with broadcasts are told of
/// it, in which forward and backward differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout<B> {
    /// Tiles in workgroup memory.
    Tile,
    /// Cooperative matrices.
    Coop(CoopTile),
    /// Lanes own rows (or keys) and load each staged vector that those meet together.
    Rows(LaneGroups),
    /// Lanes own rows, and subgroup operations hand on what they meet.
    Broadcast(B),
}

/// What both directions' layouts have in common.
pub trait AnyLayout: Copy + PartialEq + fmt::Debug {
    /// What every device runs.
    const TILE: Self;

    /// The layout with such a tile of cooperative matrices.
    fn coop(tile: CoopTile) -> Self;

    /// Its tile of cooperative matrices.
    fn coop_tile(self) -> Option<CoopTile>;

    /// The tier that it is of.
    fn tier(self) -> KernelTier;
}

impl<B: Copy + PartialEq + fmt::Debug> AnyLayout for Layout<B> {
    const TILE: Self = Self::Tile;

    fn coop(tile: CoopTile) -> Self {
        Self::Coop(tile)
    }

    fn coop_tile(self) -> Option<CoopTile> {
        match self {
            Self::Coop(tile) => Some(tile),
            _ => None,
        }
    }

    fn tier(self) -> KernelTier {
        match self {
            Self::Tile => KernelTier::Tile,
            Self::Coop(tile) => KernelTier::of_matrix(tile.matrix),
            Self::Rows(_) => KernelTier::Rows,
            Self::Broadcast(_) => KernelTier::Broadcast,
        }
    }
}

/// How the kernels of one direction, forward or backward, lay out their work.
pub trait AttentionLayout: AnyLayout {
    /// What the direction is called in keys and in the names of kernels.
    const DIRECTION: &'static str;

    /// The passes of this direction, in order.
    const PASSES: &'static [Pass];

    /// The tiers that suit a device, the best first, each with the reason.
    fn suited(head_dim: u32, caps: &DeviceCaps) -> Vec<(KernelTier, &'static str)>;

    /// The layout of the `rows` tier for these segments.
    fn rows(segments: &Segments, caps: &DeviceCaps) -> Self;

    /// The layout of the `broadcast` tier for these segments.
    fn broadcast(segments: &Segments, caps: &DeviceCaps) -> Self;

    /// Rows (or keys) that one subgroup owns in a layout with cooperative matrices.
    fn coop_rows(matrix: CooperativeMatrix) -> u32;

    /// Rows (or keys) that one workgroup computes, for heads of `head_dim`.
    fn rows_per_workgroup(self, head_dim: u32) -> u32;

    /// Bytes of workgroup memory in a pass.
    fn memory_bytes(self, head_dim: u32, pass: Pass) -> u32;

    /// Whether the numbers of a layout suit heads of `head_dim` on a device with `caps`.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`](crate::Error::InvalidConfig) or [`Error::BindingTooSmall`](crate::Error::BindingTooSmall) when they do not.
    fn check(self, head_dim: u32, caps: &DeviceCaps) -> Result<()>;

    /// Layouts of the same tier with other numbers, which may be faster.
    fn alternatives(self) -> Vec<Self>;

    /// Seconds that compilation takes, or `None` for too long to try; see [`Family::compile_time`]. Not called for cooperative matrices.
    fn compile_seconds(self, head_dim: u32, processor: Processor) -> Option<u64>;

    /// Name of the kernel, or of all kernels of the backward, in plans and reports.
    fn title(self) -> &'static str;

    /// Name of the shader of a pass.
    fn name(self, pass: Pass) -> &'static str;

    /// Fields of the shader of a pass.
    fn fields(self, head_dim: u32, pass: Pass) -> Fields;
}

impl<L: AttentionLayout> AttentionVariant<L> {
    /// Whether the kernel uses cooperative matrices.
    pub fn is_cooperative(&self) -> bool {
        self.layout.coop_tile().is_some()
    }

    /// Rows (or keys) that one workgroup computes.
    pub fn rows_per_workgroup(&self) -> u32 {
        self.layout.rows_per_workgroup(self.head_dim)
    }

    /// Bytes of workgroup memory of the pass that needs the most.
    fn most_memory_bytes(&self) -> u32 {
        let passes = L::PASSES.iter();
        let bytes = passes.map(|pass| self.layout.memory_bytes(self.head_dim, *pass));
        bytes.fold(0, u32::max)
    }

    pub(super) fn fields(&self, pass: Pass) -> Fields {
        Fields::new()
            .with("head_dim", self.head_dim)
            .with("format", self.format.name())
            .and(self.layout.fields(self.head_dim, pass))
    }

    /// Whether the kernel runs for heads of `head_dim` on a device with `caps`.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`](crate::Error::InvalidConfig) when it runs on no device,
    /// [`Error::Unsupported`](crate::Error::Unsupported) when it does not run on this one,
    /// [`Error::BindingTooSmall`](crate::Error::BindingTooSmall) when no binding covers the weights that one workgroup writes
    /// (`broadcast` tier of the backward).
    pub fn check(&self, head_dim: usize, caps: &DeviceCaps) -> Result<()> {
        if self.head_dim as usize != head_dim || head_dim > MAX_HEAD_DIM {
            return invalid(
                "head_dim of the kernel",
                self.head_dim,
                "the configuration's",
            );
        }
        let head_dim = self.head_dim;
        self.format.check(caps)?;
        if let Some(tile) = self.layout.coop_tile() {
            tile.check(self.format, caps)?;
            CoopTile::check_head_dim(head_dim)?;
            if tile.rows != L::coop_rows(tile.matrix) {
                return invalid(
                    "rows of a subgroup of the kernel",
                    tile.rows,
                    "those that the kernel has for the device's matrices",
                );
            }
        }
        if self.layout.tier() == KernelTier::Broadcast {
            KernelTier::Broadcast.check(caps)?;
        }
        self.layout.check(head_dim, caps)?;
        let bytes = self.most_memory_bytes();
        if bytes > caps.max_workgroup_memory_bytes {
            return Err(no_room("the kernel", caps, format!("{bytes} bytes")));
        }
        Ok(())
    }
}

impl<L: AttentionLayout> fmt::Display for AttentionVariant<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} ({}, {} rows a workgroup, {} bytes of workgroup memory)",
            self.layout.title(),
            self.format.dtype(),
            self.rows_per_workgroup(),
            self.most_memory_bytes()
        )
    }
}

/// The attention kernels of one direction for one configuration and element format, to choose from.
#[derive(Clone, Copy, Debug)]
pub struct AttentionFamily<L> {
    segments: Segments,
    format: ElementFormat,
    layout: PhantomData<L>,
}

impl<L: AttentionLayout> AttentionFamily<L> {
    /// Kernels for the segments of `config`, with tensors stored as `format`.
    pub fn of(config: &DilatedAttentionConfig, format: ElementFormat) -> Self {
        Self {
            segments: Segments::of(config),
            format,
            layout: PhantomData,
        }
    }

    /// Kernels for segments longer than any kernel's tile.
    pub fn of_long_segments(head_dim: usize, format: ElementFormat) -> Self {
        Self {
            segments: Segments::long(in_u32(head_dim)),
            format,
            layout: PhantomData,
        }
    }

    /// Segments and head size: what a timed probe is made for.
    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) fn segments(&self) -> &Segments {
        &self.segments
    }

    fn with(&self, layout: L) -> AttentionVariant<L> {
        AttentionVariant {
            layout,
            head_dim: self.segments.head_dim,
            format: self.format,
        }
    }

    /// The layout with the best tile of cooperative matrices that fits in workgroup memory.
    fn coop(&self, caps: &DeviceCaps) -> Result<L> {
        let matrix = CoopTile::matrix_for(self.format, caps)?;
        CoopTile::check_head_dim(self.segments.head_dim)?;
        CoopTile::candidates(matrix, L::coop_rows(matrix))
            .map(L::coop)
            .find(|layout| {
                self.with(*layout).most_memory_bytes() <= caps.max_workgroup_memory_bytes
            })
            .ok_or_else(|| CoopTile::no_room(caps))
    }
}

impl<L: AttentionLayout> Family for AttentionFamily<L> {
    type Variant = AttentionVariant<L>;

    fn suited(&self, caps: &DeviceCaps) -> Vec<(KernelTier, &'static str)> {
        L::suited(self.segments.head_dim, caps)
    }

    fn of_device_tier(&self, tier: KernelTier, caps: &DeviceCaps) -> Result<Self::Variant> {
        Ok(self.with(match tier {
            KernelTier::Tile => L::TILE,
            KernelTier::Rows => L::rows(&self.segments, caps),
            KernelTier::Broadcast => L::broadcast(&self.segments, caps),
            KernelTier::Coop8 | KernelTier::Coop16 => self.coop(caps)?,
        }))
    }

    fn tile(&self) -> Self::Variant {
        self.with(L::TILE)
    }

    fn check(&self, variant: Self::Variant, caps: &DeviceCaps) -> Result<()> {
        variant.check(self.segments.head_dim as usize, caps)
    }

    fn alternatives(&self, variant: Self::Variant) -> Vec<Self::Variant> {
        let layouts = variant.layout.alternatives().into_iter();
        layouts.map(|layout| self.with(layout)).collect()
    }

    fn compile_time(&self, variant: Self::Variant, caps: &DeviceCaps) -> Option<Duration> {
        // Not to be measured: probes use f32 and these kernels take f16 only. They are known to be faster on GPUs and slower on CPUs.
        if variant.is_cooperative() {
            return None;
        }
        let layout = variant.layout;
        let seconds = layout.compile_seconds(variant.head_dim, caps.processor)?;
        Some(Duration::from_secs(seconds))
    }

    fn key(&self) -> String {
        self.segments.key(L::DIRECTION)
    }

    fn variant_key(variant: &Self::Variant) -> String {
        let pass = L::PASSES[0];
        variant.fields(pass).key(variant.layout.name(pass))
    }
}
