//! The forward plan: which dispatches compute an attention, with which windows, in which memory.
//!
//! For each row and head, the first dispatch of the first branch *writes* output and softmax state, and all later dispatches
//! *merge* with what is there. Rows that the first branch does not write for every head are cleared before. A branch of dilation
//! rate 1 writes every row and goes first; then only the padding of short items is cleared.

use std::time::Duration;

use super::dispatch::{AttentionDispatch, packed_bytes};
use super::needs;
#[cfg(not(target_arch = "wasm32"))]
use super::planner::{BlockPlan, BlockSize, ShareNeeds, SharePlan, Tokens};
use super::planner::{PlannedPass, Planner, Round};
use super::window::RowLayout;
use super::workspace::{ParamsLayout, PlannedBuffer, check_sizes};
use crate::config::{AttentionShape, DilatedAttentionConfig, Heads, Mask};
use crate::device::{ByteRange, DType, DeviceCaps, ElementFormat};
use crate::error::{Error, PoolError, Result};
use crate::kernels::attention_forward::{ForwardFamily, ForwardVariant};
use crate::kernels::{AttentionParams, Choice, Family, Pass, Reason};
use crate::tensor::check_parts;

/// Everything that a forward does on the device, as plain data. Made by [`DilatedAttentionConfig::plan_forward`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ForwardPlan {
    /// Shape of the call.
    pub shape: AttentionShape,
    /// Rows of the tensors of queries and outputs: tokens of all items together.
    pub(crate) num_rows: u64,
    /// Number of heads.
    pub(crate) num_heads: usize,
    /// Elements in one head.
    pub(crate) head_dim: usize,
    /// The kernel.
    pub(crate) variant: ForwardVariant,
    /// Why this kernel was chosen.
    pub(crate) reason: Reason,
    /// Ranges of rows (`item * seq_len + token`, end excluded) whose output and softmax state are set to 0 first.
    pub(crate) clears: Vec<(u64, u64)>,
    /// The dispatches, in order.
    pub(crate) dispatches: Vec<AttentionDispatch>,
    /// Bytes of packed keys and of packed values; 0 where no keys are packed.
    pub(crate) packed_bytes: u64,
    /// Buffers that a forward leases when it is the only one in a recording.
    pub(crate) buffers: Vec<PlannedBuffer>,
    /// Floating point operations over the valid tokens: `4 * B * N * H * D * sum(w / r^2)`, summed over the branches. Half of it
    /// under the causal mask, a G-th of it where heads are partitioned among G branches.
    pub flop: u64,
    /// Least bytes that any kernel has to move: q, k and v read once, the output written once.
    pub byte_floor: u64,
}

impl DilatedAttentionConfig {
    /// Plans the forward of tensors of `shape` and `dtype` on a device with `caps`. Needs no device.
    ///
    /// # Errors
    /// [`Error::SizeOverflow`], [`PoolError::BufferTooLarge`](crate::pool::PoolError::BufferTooLarge) when the device's largest buffer
    /// does not hold a token, [`Error::BindingTooSmall`] when a binding cannot cover even one token, [`Error::WrongDType`] for integers.
    pub fn plan_forward(
        &self,
        shape: &AttentionShape,
        dtype: DType,
        caps: &DeviceCaps,
    ) -> Result<ForwardPlan> {
        let format = ElementFormat::of("q", dtype, caps)?;
        let choice = ForwardFamily::of(self, format).choice(caps);
        self.plan_forward_with(shape, caps, choice)
    }

    /// As [`plan_forward`](Self::plan_forward), with a kernel that the caller chooses.
    ///
    /// # Errors
    /// As [`plan_forward`](Self::plan_forward), and [`Error::InvalidConfig`] when the kernel does not fit the head size,
    /// [`Error::Unsupported`] when it does not fit the device.
    pub fn plan_forward_with(
        &self,
        shape: &AttentionShape,
        caps: &DeviceCaps,
        choice: impl Into<Choice<ForwardVariant>>,
    ) -> Result<ForwardPlan> {
        let Choice { variant, reason } = choice.into();
        variant.check(self.head_dim(), caps)?;
        let num_rows = shape.batch() as u64 * shape.seq_len() as u64;
        let tensor_bytes = tensor_bytes(self, shape, variant.format, caps)?;
        let clears = clears(self, shape.batch(), shape.seq_len(), |item| {
            shape.valid_len(item)
        });
        let rounds = rounds(variant);
        let planner = Planner::new(self, shape, caps, &rounds, None, variant.format)?;
        let dispatches = planner.plan()?;
        let buffers = buffers(self, num_rows, variant.format, &dispatches, caps);
        check_sizes(&buffers, caps)?;
        Ok(ForwardPlan {
            shape: shape.clone(),
            num_rows,
            num_heads: self.num_heads(),
            head_dim: self.head_dim(),
            variant,
            reason,
            clears,
            packed_bytes: packed_bytes(&dispatches),
            dispatches,
            buffers,
            flop: forward_flop(self, shape) as u64,
            byte_floor: tensor_bytes.saturating_mul(4),
        })
    }
}

/// What a forward computes: one pass over each branch.
fn rounds(variant: ForwardVariant) -> [Round; 1] {
    [vec![vec![PlannedPass {
        pass: Pass::Forward,
        tile: variant.rows_per_workgroup(),
        columns: 1,
    }]]]
}

/// Plans one block of a forward out of core, with a kernel of f32.
#[cfg(not(target_arch = "wasm32"))]
pub(crate) fn plan_block(
    config: &DilatedAttentionConfig,
    shape: &AttentionShape,
    caps: &DeviceCaps,
    variant: ForwardVariant,
    outputs: Tokens,
    size: BlockSize,
) -> Result<BlockPlan> {
    let rounds = rounds(variant);
    let planner = Planner::new(config, shape, caps, &rounds, None, variant.format)?;
    planner.plan_block(outputs, size)
}

/// Plans a rank's share of a forward: the outputs `share` of one sequence of the shape, which need `needs`.
#[cfg(not(target_arch = "wasm32"))]
pub(crate) fn plan_forward_of_share(
    config: &DilatedAttentionConfig,
    shape: &AttentionShape,
    caps: &DeviceCaps,
    variant: ForwardVariant,
    (share, needs): (&Tokens, &ShareNeeds),
) -> Result<SharePlan> {
    let rounds = rounds(variant);
    let planner = Planner::new(config, shape, caps, &rounds, None, variant.format)?;
    planner.plan_share(share, needs)
}

/// Bytes of the larger of q and k. The output is as large as q.
///
/// # Errors
/// [`Error::SizeOverflow`], [`PoolError::BufferTooLarge`].
pub(super) fn tensor_bytes(
    config: &DilatedAttentionConfig,
    shape: &AttentionShape,
    format: ElementFormat,
    caps: &DeviceCaps,
) -> Result<u64> {
    let row_bytes = RowLayout::of_activations(config, format, caps).row_bytes;
    let (what, len) = match shape.key_len() > shape.seq_len() {
        true => ("k", shape.key_len()),
        false => ("q", shape.seq_len()),
    };
    let num_rows = shape.batch() as u64 * len as u64;
    if row_bytes > caps.max_buffer_bytes {
        return Err(PoolError::BufferTooLarge {
            label: what.into(),
            requested_bytes: row_bytes,
            limit_bytes: caps.max_buffer_bytes,
        }
        .into());
    }
    // The statistics of a head of 4 elements take four times its bytes.
    let bytes = row_bytes.checked_mul(num_rows);
    let bytes = bytes
        .filter(|bytes| *bytes <= u64::MAX / 16)
        .ok_or_else(|| Error::SizeOverflow {
            what: what.into(),
            given: format!("{num_rows} rows of {row_bytes} bytes"),
        })?;
    check_parts(&what.into(), bytes, caps.part_bytes(row_bytes))?;
    Ok(bytes)
}

/// Floating point operations of a forward over the valid tokens.
pub(crate) fn forward_flop(config: &DilatedAttentionConfig, shape: &AttentionShape) -> f64 {
    (0..shape.batch())
        .map(|item| {
            if shape.is_cross() {
                let pairs = shape.valid_len(item) as f64 * shape.valid_key_len(item) as f64;
                return 4.0 * pairs * config.embed_dim() as f64;
            }
            flop_per_item(config, shape.valid_len(item))
        })
        .sum()
}

fn flop_per_item(config: &DilatedAttentionConfig, valid_len: usize) -> f64 {
    let num_heads = config.num_heads() as f64;
    let heads_per_branch = match config.heads() {
        Heads::EveryBranch => num_heads,
        Heads::Partitioned => num_heads / config.branches().len() as f64,
    };
    let keys_per_row: f64 = config
        .branches()
        .iter()
        .map(|branch| {
            let rate = branch.dilation_rate as f64;
            branch.segment_length.min(valid_len) as f64 / (rate * rate)
        })
        .sum();
    let mask = match config.mask() {
        Mask::Full => 4.0,
        Mask::Causal => 2.0,
    };
    mask * valid_len as f64 * heads_per_branch * config.head_dim() as f64 * keys_per_row
}

/// Ranges of rows (`item * len + token`, end excluded) that have to be cleared, because for some head no dispatch overwrites them.
pub(super) fn clears(
    config: &DilatedAttentionConfig,
    batch: usize,
    len: usize,
    valid_len: impl Fn(usize) -> usize,
) -> Vec<(u64, u64)> {
    let len = len as u64;
    let rate_one = |branch: &crate::config::Branch| branch.dilation_rate == 1;
    let all_written = match config.heads() {
        Heads::EveryBranch => config.branches().iter().any(rate_one),
        // Each head belongs to one branch only.
        Heads::Partitioned => config.branches().iter().all(rate_one),
    };
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for item in 0..batch {
        let begin = item as u64 * len;
        let first = if all_written {
            begin + valid_len(item) as u64
        } else {
            begin
        };
        match ranges.last_mut() {
            Some((_, end)) if *end == first => *end = begin + len,
            _ if first < begin + len => ranges.push((first, begin + len)),
            _ => {}
        }
    }
    ranges
}

fn buffers(
    config: &DilatedAttentionConfig,
    num_rows: u64,
    format: ElementFormat,
    dispatches: &[AttentionDispatch],
    caps: &DeviceCaps,
) -> Vec<PlannedBuffer> {
    let out = RowLayout::of_activations(config, format, caps);
    let mut buffers = PlannedBuffer::parts("out", num_rows, &out, caps);
    let state = RowLayout::of_state(config, caps);
    buffers.extend(PlannedBuffer::parts(
        "softmax_state",
        num_rows,
        &state,
        caps,
    ));
    let packed_bytes = packed_bytes(dispatches);
    if packed_bytes > 0 {
        let packed = ["packed k", "packed v"];
        buffers.extend(packed.map(|label| PlannedBuffer::storage(label, packed_bytes, caps)));
    }
    let mut params = ParamsLayout::new(caps);
    for _ in dispatches {
        params.add::<AttentionParams>();
    }
    buffers.extend(params.buffers());
    buffers
}

impl ForwardPlan {
    /// Number of dispatches.
    pub fn num_dispatches(&self) -> usize {
        self.dispatches.len()
    }

    /// Bytes that a forward asks the pool for when it is the only one in a recording: output, softmax state, parameters and their
    /// staging. Inputs are not counted; they are the caller's.
    pub fn requested_bytes(&self) -> u64 {
        self.buffers
            .iter()
            .map(|buffer| buffer.requested_bytes)
            .sum()
    }

    /// Bytes that the pool holds for these buffers: the sum of their size classes.
    pub fn held_bytes(&self) -> u64 {
        self.buffers.iter().map(|buffer| buffer.class_bytes).sum()
    }

    /// Checks that the buffers of this call, inputs excluded, stay within `budget_bytes` of a pool.
    ///
    /// # Errors
    /// [`Error::PlanOverBudget`] with both numbers.
    pub fn check_budget(&self, budget_bytes: u64) -> Result<()> {
        needs::check_budget(
            "the forward of the attention",
            self.held_bytes(),
            budget_bytes,
            "shorten the sequence, use half precision or raise the budget",
        )
    }

    /// Time of the forward on an adapter that does `flop_per_second` floating point operations per second.
    pub fn time_at(&self, flop_per_second: f64) -> Duration {
        needs::time_at(self.flop, flop_per_second)
    }

    /// Byte range of rows `begin .. end` in the tensor of softmax states.
    pub(crate) fn state_range(&self, (begin, end): (u64, u64)) -> ByteRange {
        let row_bytes = self.num_heads as u64 * 8;
        ByteRange {
            offset: begin * row_bytes,
            size: (end - begin) * row_bytes,
        }
    }

    /// Byte range of rows `begin .. end` in the output.
    pub(crate) fn out_range(&self, (begin, end): (u64, u64)) -> ByteRange {
        let element_bytes = u64::from(self.variant.format.bytes());
        let row_bytes = (self.num_heads * self.head_dim) as u64 * element_bytes;
        ByteRange {
            offset: begin * row_bytes,
            size: (end - begin) * row_bytes,
        }
    }
}
