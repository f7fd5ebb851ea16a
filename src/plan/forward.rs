//! The forward plan: which dispatches compute an attention, with which windows, in which memory.
//!
//! The first dispatch that reaches a (row, head) *writes* (O, LSE), all later ones *merge*; what no dispatch writes is
//! cleared before. With a branch of rate 1, which goes first and covers everything, nothing is cleared but the tails of
//! short items.

use super::branch::BranchGeometry;
use super::facts::DeviceFacts;
use super::planner::Planner;
use super::window::{ByteRange, RowLayout, TokenWindow, word_windows};
use super::workspace::{BufferRole, staging_bytes};
use crate::config::{AttentionShape, DilatedAttentionConfig, Heads, Mask};
use crate::error::{Error, Result};
use crate::kernel::forward::ForwardVariant;
use crate::kernel::{FillParams, ForwardParams};
use crate::pool::size_class::class_bytes;

/// LSE of a row that no branch covers: finite, since WGSL has no infinities.
pub const UNCOVERED_LSE: f32 = -1e30;

/// A half-open range of indices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Range {
    /// First index.
    pub begin: u32,
    /// One past the last index.
    pub end: u32,
}

impl Range {
    pub(super) fn len(self) -> u32 {
        self.end - self.begin
    }
}

/// One dispatch of a forward kernel.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ForwardDispatch {
    /// The branch, applied to the length of these items.
    pub geometry: BranchGeometry,
    /// Batch items.
    pub items: Range,
    /// Heads.
    pub heads: Range,
    /// Segments of each item.
    pub segments: Range,
    /// Query rows of each segment, rows of the branch (not tokens).
    pub rows: Range,
    /// Key rows of each segment, rows of the branch (not tokens).
    pub key_rows: Range,
    /// Joins the output with what is there, instead of writing it.
    pub merges: bool,
    /// What is bound of q.
    pub q: TokenWindow,
    /// What is bound of k, and of v.
    pub kv: TokenWindow,
    /// What is bound of the output.
    pub out: TokenWindow,
    /// What is bound of the LSE.
    pub lse: TokenWindow,
    /// First token of the windows of q, of k and v, and of the outputs, in the first item.
    pub first_tokens: [u32; 3],
    /// Workgroups.
    pub num_workgroups: u32,
    /// Workgroups along x and y.
    pub grid: [u32; 2],
}

/// A buffer that the forward leases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PlannedBuffer {
    /// Label of the lease.
    pub label: &'static str,
    /// What the buffer is for.
    pub role: BufferRole,
    /// Bytes asked for.
    pub requested_bytes: u64,
    /// Bytes of the size class: those of the buffer if the pool creates one.
    pub class_bytes: u64,
}

/// Everything the forward will tell the device, as plain data. Made by [`DilatedAttentionConfig::plan_forward`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ForwardPlan {
    /// Shape of the call.
    pub shape: AttentionShape,
    /// Tokens of all items together, the rows of the tensors.
    pub num_rows: u64,
    /// Number of heads.
    pub num_heads: u32,
    /// Elements in one head.
    pub head_dim: u32,
    /// The kernel.
    pub variant: ForwardVariant,
    /// Half-open ranges of rows (`item * seq_len + token`) that are cleared first: output to 0, LSE to [`UNCOVERED_LSE`].
    pub clears: Vec<(u64, u64)>,
    /// The dispatches, in order.
    pub dispatches: Vec<ForwardDispatch>,
    /// Buffers leased by a forward that is recorded alone.
    pub buffers: Vec<PlannedBuffer>,
    /// Floating point operations: `4 * B * N * H * D * sum(w / r^2)` over the valid tokens, half of it under the causal mask,
    /// a G-th of it where heads are partitioned among G branches.
    pub flop: u64,
    /// Bytes that must be moved at least: q, k, v read once, the output written once.
    pub byte_floor: u64,
}

impl DilatedAttentionConfig {
    /// Plans the forward of `shape` on a device with `facts`. Needs no device.
    ///
    /// # Errors
    /// [`Error::SizeOverflow`], [`Error::BufferTooLarge`] when a tensor exceeds a buffer of the device,
    /// [`Error::BindingTooSmall`] when a binding cannot even cover one token.
    pub fn plan_forward(&self, shape: &AttentionShape, facts: &DeviceFacts) -> Result<ForwardPlan> {
        let variant = ForwardVariant::choose(self.head_dim(), facts);
        self.plan_forward_with(shape, facts, variant)
    }

    /// As [`plan_forward`](Self::plan_forward), with a kernel of the caller's choice.
    ///
    /// # Errors
    /// As [`plan_forward`](Self::plan_forward), and [`Error::InvalidConfig`] when the kernel does not fit the head size or
    /// the device.
    pub fn plan_forward_with(
        &self,
        shape: &AttentionShape,
        facts: &DeviceFacts,
        variant: ForwardVariant,
    ) -> Result<ForwardPlan> {
        variant.check(self.head_dim(), facts)?;
        let row_bytes = u64::from(self.embed_dim()) * 4;
        let num_rows = u64::from(shape.batch()) * u64::from(shape.seq_len());
        let tensor_bytes = row_bytes
            .checked_mul(num_rows)
            .ok_or_else(|| Error::SizeOverflow {
                what: "q",
                given: format!("{num_rows} rows of {row_bytes} bytes"),
            })?;
        if tensor_bytes > facts.max_buffer_bytes {
            return Err(Error::BufferTooLarge {
                label: "out",
                requested_bytes: tensor_bytes,
                limit_bytes: facts.max_buffer_bytes,
            });
        }
        let mut planner = Planner {
            config: self,
            facts,
            seq_len: shape.seq_len(),
            variant,
            tensor: RowLayout {
                row_bytes,
                element_bytes: 16,
            },
            lse: RowLayout {
                row_bytes: u64::from(self.num_heads()) * 4,
                element_bytes: 4,
            },
            dispatches: Vec::new(),
        };
        if planner.tensor.max_rows(facts) == 0 {
            return Err(Error::BindingTooSmall {
                what: "q",
                requested_bytes: row_bytes + facts.storage_offset_alignment,
                limit_bytes: facts.max_binding_bytes,
            });
        }
        let clears = clears(self, shape);
        let mut flop = 0.0;
        for (items, valid_len) in runs_of_equal_length(shape) {
            if valid_len > 0 {
                planner.plan_items(items, valid_len)?;
                flop += f64::from(items.len()) * flop_per_item(self, valid_len);
            }
        }
        let dispatches = planner.dispatches;
        let buffers = buffers(self, num_rows, &clears, &dispatches, facts);
        Ok(ForwardPlan {
            shape: shape.clone(),
            num_rows,
            num_heads: self.num_heads(),
            head_dim: self.head_dim(),
            variant,
            clears,
            dispatches,
            buffers,
            flop: flop as u64,
            byte_floor: tensor_bytes.saturating_mul(4),
        })
    }
}

fn flop_per_item(config: &DilatedAttentionConfig, valid_len: u32) -> f64 {
    let num_heads = f64::from(config.num_heads());
    let heads_per_branch = match config.get_heads() {
        Heads::EveryBranch => num_heads,
        Heads::Partitioned => num_heads / config.branches().len() as f64,
    };
    let keys_per_row: f64 = config
        .branches()
        .iter()
        .map(|branch| {
            let rate = f64::from(branch.dilation_rate);
            f64::from(branch.segment_length.min(valid_len)) / (rate * rate)
        })
        .sum();
    let mask = match config.get_mask() {
        Mask::Full => 4.0,
        Mask::Causal => 2.0,
    };
    mask * f64::from(valid_len) * heads_per_branch * f64::from(config.head_dim()) * keys_per_row
}

/// Runs of neighbouring batch items with as many valid tokens.
fn runs_of_equal_length(shape: &AttentionShape) -> Vec<(Range, u32)> {
    let mut runs: Vec<(Range, u32)> = Vec::new();
    for item in 0..shape.batch() {
        let valid_len = shape.valid_len(item);
        match runs.last_mut() {
            Some((items, len)) if *len == valid_len => items.end = item + 1,
            _ => runs.push((
                Range {
                    begin: item,
                    end: item + 1,
                },
                valid_len,
            )),
        }
    }
    runs
}

/// Row ranges that no dispatch writes first.
fn clears(config: &DilatedAttentionConfig, shape: &AttentionShape) -> Vec<(u64, u64)> {
    let seq_len = u64::from(shape.seq_len());
    let rate_one = |branch: &crate::config::Branch| branch.dilation_rate == 1;
    let all_written = match config.get_heads() {
        Heads::EveryBranch => config.branches().iter().any(rate_one),
        // Each head belongs to one branch only.
        Heads::Partitioned => config.branches().iter().all(rate_one),
    };
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for item in 0..shape.batch() {
        let begin = u64::from(item) * seq_len;
        let first = if all_written {
            begin + u64::from(shape.valid_len(item))
        } else {
            begin
        };
        match ranges.last_mut() {
            Some((_, end)) if *end == first => *end = begin + seq_len,
            _ if first < begin + seq_len => ranges.push((first, begin + seq_len)),
            _ => {}
        }
    }
    ranges
}

fn buffers(
    config: &DilatedAttentionConfig,
    num_rows: u64,
    clears: &[(u64, u64)],
    dispatches: &[ForwardDispatch],
    facts: &DeviceFacts,
) -> Vec<PlannedBuffer> {
    let planned = |label, role, bytes: u64| {
        let requested_bytes = bytes.max(4).next_multiple_of(4);
        PlannedBuffer {
            label,
            role,
            requested_bytes,
            class_bytes: class_bytes(requested_bytes, facts.max_buffer_bytes),
        }
    };
    let out_bytes = num_rows * u64::from(config.embed_dim()) * 4;
    let lse_bytes = num_rows * u64::from(config.num_heads()) * 4;
    let mut buffers = vec![
        planned("out", BufferRole::Storage, out_bytes),
        planned("softmax_lse", BufferRole::Storage, lse_bytes),
    ];
    // Every dispatch has its parameters at an aligned offset of one uniform buffer: first the fills of the clears, then
    // the branches.
    let mut params_bytes = 0u64;
    let mut add = |bytes: usize| {
        params_bytes = params_bytes.next_multiple_of(facts.uniform_offset_alignment) + bytes as u64;
    };
    for &(begin, end) in clears {
        let row_bytes = u64::from(config.num_heads()) * 4;
        let range = ByteRange {
            offset: begin * row_bytes,
            size: (end - begin) * row_bytes,
        };
        for _ in word_windows(range, facts) {
            add(size_of::<FillParams>());
        }
    }
    for _ in dispatches {
        add(size_of::<ForwardParams>());
    }
    if params_bytes > 0 {
        buffers.push(planned("params", BufferRole::Params, params_bytes));
        let mut left = params_bytes;
        while left > 0 {
            let chunk = staging_bytes(left);
            buffers.push(planned("staging", BufferRole::Staging, chunk));
            left = left.saturating_sub(chunk);
        }
    }
    buffers
}

impl ForwardDispatch {
    /// The parameters as the kernel reads them.
    pub fn params(&self, config: &DilatedAttentionConfig, seq_len: u32) -> ForwardParams {
        let geometry = &self.geometry;
        let flags = [
            (geometry.causal, ForwardParams::CAUSAL),
            // Counted once, with the first keys.
            (
                geometry.zero_keys && self.key_rows.begin == 0,
                ForwardParams::ZERO_KEYS,
            ),
            (self.merges, ForwardParams::MERGE),
            (geometry.phantom_rows, ForwardParams::PHANTOM_ROWS),
        ];
        ForwardParams {
            seq_len,
            valid_len: geometry.seq_len,
            num_heads: config.num_heads(),
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
            scale_log2e: config.get_softmax_scale() * std::f32::consts::LOG2_E,
            out_scale: match config.get_heads() {
                Heads::EveryBranch => 1.0,
                Heads::Partitioned => 1.0 / config.branches().len() as f32,
            },
            q_token0: self.first_tokens[0],
            q_skip: self.q.skip,
            kv_token0: self.first_tokens[1],
            kv_skip: self.kv.skip,
            out_token0: self.first_tokens[2],
            out_skip: self.out.skip,
            lse_skip: self.lse.skip,
            grid_width: self.grid[0],
            num_workgroups: self.num_workgroups,
        }
    }
}

impl ForwardPlan {
    /// Bytes that a forward recorded alone asks the pool for, at its peak: the output, the LSE, parameters and their
    /// staging. The inputs are the caller's.
    pub fn requested_bytes(&self) -> u64 {
        self.buffers
            .iter()
            .map(|buffer| buffer.requested_bytes)
            .sum()
    }

    /// Bytes of the size classes of these buffers.
    pub fn held_bytes(&self) -> u64 {
        self.buffers.iter().map(|buffer| buffer.class_bytes).sum()
    }

    /// Byte range of the LSE that rows `begin .. end` of the output have.
    pub(crate) fn lse_range(&self, (begin, end): (u64, u64)) -> ByteRange {
        let row_bytes = u64::from(self.num_heads) * 4;
        ByteRange {
            offset: begin * row_bytes,
            size: (end - begin) * row_bytes,
        }
    }

    /// Byte range of rows `begin .. end` of the output.
    pub(crate) fn out_range(&self, (begin, end): (u64, u64)) -> ByteRange {
        let row_bytes = u64::from(self.num_heads) * u64::from(self.head_dim) * 4;
        ByteRange {
            offset: begin * row_bytes,
            size: (end - begin) * row_bytes,
        }
    }
}
