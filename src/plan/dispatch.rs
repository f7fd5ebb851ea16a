//! One dispatch of an attention kernel, as plain data.

use super::branch::BranchGeometry;
use super::window::TokenWindow;
use crate::config::{AttentionShape, DilatedAttentionConfig, Heads, MixGradient, in_u32};
use crate::kernels::software::attention_backward::WeightsTile;
use crate::kernels::{AttentionParams, Pass};

/// A range of indices, end excluded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Range {
    /// First index.
    pub begin: u32,
    /// One past the last index.
    pub end: u32,
}

impl Range {
    pub(crate) fn len(self) -> u32 {
        self.end - self.begin
    }
}

/// Where the keys of a dispatch lie; with their values and the gradients of both it is the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeySource {
    /// Where their tokens do, in the tensors k and v.
    Tokens,
    /// Packed: of one segment of one item these rows of the branch, one after the other, each with these heads alone.
    Packed {
        /// Heads of a row.
        heads: Range,
        /// Rows, counted in rows of the branch.
        rows: Range,
    },
}

/// One dispatch of an attention kernel over one branch.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AttentionDispatch {
    /// The pass that is computed.
    pub pass: Pass,
    /// The branch, for sequences as long as these items.
    pub geometry: BranchGeometry,
    /// Batch items.
    pub items: Range,
    /// Heads.
    pub heads: Range,
    /// Segments of each item.
    pub segments: Range,
    /// Queries of each segment, counted in rows of the branch, not in tokens.
    pub rows: Range,
    /// Keys of each segment, counted in rows of the branch, not in tokens.
    pub key_rows: Range,
    /// Whether results are merged with those of earlier dispatches instead of overwriting them.
    pub merges: bool,
    /// The bound window of q and dq; of k and v (or dk and dv) where these are packed or unpacked.
    pub q: TokenWindow,
    /// Where the keys lie.
    pub keys: KeySource,
    /// The bound window of k, v, dk and dv, or of packed keys all of them.
    pub kv: TokenWindow,
    /// The bound window of the output and its gradient.
    pub out: TokenWindow,
    /// The bound window of the softmax state.
    pub state: TokenWindow,
    /// The bound window of the row statistics, which the sweep of the backward leaves for each row and head.
    pub row_stats: TokenWindow,
    /// First tokens of the windows of q, of k and v (unless these are packed), and of the output, counted in the first item.
    pub first_tokens: [u32; 3],
    /// Number of workgroups.
    pub num_workgroups: u32,
    /// Workgroups along x and y.
    pub grid: [u32; 2],
}

/// Bytes of each of the tensors of packed keys that `dispatches` need: they serve all of them in turn. 0 where none packs keys.
pub(crate) fn packed_bytes<'a>(dispatches: impl IntoIterator<Item = &'a AttentionDispatch>) -> u64 {
    let packing = dispatches
        .into_iter()
        .filter(|dispatch| dispatch.pass == Pass::PackKeys);
    let bytes = packing.map(|dispatch| dispatch.kv.bytes.size);
    bytes.max().unwrap_or(0)
}

impl AttentionDispatch {
    /// Bytes of the weights in memory, over all items, segments and heads of the dispatch.
    pub(crate) fn weights_bytes(&self, tile: WeightsTile) -> u64 {
        let units = [self.items, self.segments, self.heads].map(|range| u64::from(range.len()));
        units.iter().product::<u64>() * tile.weights_bytes(self.rows.len(), self.key_rows.len())
    }

    /// The parameters that the kernel reads.
    pub fn params(
        &self,
        config: &DilatedAttentionConfig,
        shape: &AttentionShape,
    ) -> AttentionParams {
        let geometry = &self.geometry;
        let flags = [
            (geometry.causal, AttentionParams::CAUSAL),
            // Zero keys count once, in the dispatch with the first keys.
            (
                geometry.zero_keys && self.key_rows.begin == 0,
                AttentionParams::ZERO_KEYS,
            ),
            (self.merges, AttentionParams::MERGE),
            (geometry.phantom_rows, AttentionParams::PHANTOM_ROWS),
            (
                config.gradient() == MixGradient::DetachedMix,
                AttentionParams::DETACHED,
            ),
        ];
        let keys = self.key_strides(config, shape);
        AttentionParams {
            seq_len: in_u32(shape.seq_len()),
            valid_len: geometry.seq_len,
            valid_key_len: geometry.key_len,
            num_heads: in_u32(config.num_heads()),
            head_begin: self.heads.begin,
            head_count: self.heads.len(),
            offset_base: geometry.offset_base,
            offset_div: geometry.offset_div,
            offset_mod: geometry.offset_mod,
            segment_length: geometry.segment_length,
            dilation_rate: geometry.dilation_rate,
            rows_per_segment: geometry.rows_per_segment,
            output_stride: geometry.output_stride,
            segment_begin: self.segments.begin,
            segment_count: self.segments.len(),
            row_begin: self.rows.begin,
            row_end: self.rows.end,
            key_row_begin: self.key_rows.begin,
            key_row_end: self.key_rows.end,
            flags: flags
                .iter()
                .filter(|(set, _)| *set)
                .fold(0, |all, (_, flag)| all | flag),
            scale: config.softmax_scale(),
            scale_log2e: config.softmax_scale() * std::f32::consts::LOG2_E,
            out_scale: match config.heads() {
                Heads::EveryBranch => 1.0,
                Heads::Partitioned => 1.0 / config.branches().len() as f32,
            },
            q_token0: self.first_tokens[0],
            q_skip: self.q.skip,
            out_token0: self.first_tokens[2],
            out_skip: self.out.skip,
            state_skip: self.state.skip,
            row_stats_skip: self.row_stats.skip,
            first_workgroup: 0,
            grid_width: self.grid[0],
            num_workgroups: self.num_workgroups,
            key_origin: keys.origin,
            key_item_stride: keys.item,
            key_segment_stride: keys.segment,
            key_offset_stride: keys.offset,
            key_row_stride: keys.row,
        }
    }

    /// Where the keys lie in their binding.
    fn key_strides(&self, config: &DilatedAttentionConfig, shape: &AttentionShape) -> KeyStrides {
        let head = in_u32(config.head_dim()) / 4;
        // A place holds a row of heads. Products that do not fit wrap around, as the sums of kernels do: an index fits.
        let place = |heads: u32| heads.wrapping_mul(head);
        let geometry = &self.geometry;
        match self.keys {
            KeySource::Tokens => {
                let token = place(in_u32(config.num_heads()));
                let tokens = |count: u32| count.wrapping_mul(token);
                KeyStrides {
                    origin: self.kv.skip.wrapping_sub(tokens(self.first_tokens[1])),
                    item: tokens(in_u32(shape.key_len())),
                    segment: tokens(geometry.segment_length),
                    offset: token,
                    row: tokens(geometry.dilation_rate),
                }
            }
            KeySource::Packed { heads, rows } => {
                let row = place(heads.len());
                let before = rows
                    .begin
                    .wrapping_mul(row)
                    .wrapping_add(place(heads.begin));
                KeyStrides {
                    origin: self.kv.skip.wrapping_sub(before),
                    item: 0,
                    segment: 0,
                    offset: 0,
                    row,
                }
            }
        }
    }
}

/// Distances of keys in their binding, in vec4; see `geometry.wgsl`.
struct KeyStrides {
    origin: u32,
    item: u32,
    segment: u32,
    offset: u32,
    row: u32,
}
