//! The forward plan: which dispatches compute an attention, with which windows, in which memory.
//!
//! The first dispatch that reaches a (row, head) *writes* its output and softmax state, all later ones *merge*; what no dispatch writes is
//! cleared before. With a branch of rate 1, which goes first and covers everything, nothing is cleared but the tails of
//! short items.

use super::dispatch::AttentionDispatch;
use super::planner::{PlannedPass, Planner};
use super::window::RowLayout;
use super::workspace::{ParamsLayout, PlannedBuffer};
use crate::config::{AttentionShape, DilatedAttentionConfig, Heads, Mask};
use crate::device::ByteRange;
use crate::device::DeviceCaps;
use crate::device::{DType, ElementFormat};
use crate::error::{Error, PoolError, Result};
use crate::kernels::Pass;
use crate::kernels::attention_forward::{ForwardFamily, ForwardVariant};
use crate::kernels::{AttentionParams, Choice, Family, Reason};

/// Everything the forward will tell the device, as plain data. Made by [`DilatedAttentionConfig::plan_forward`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ForwardPlan {
    /// Shape of the call.
    pub shape: AttentionShape,
    /// Tokens of all items together, the rows of the tensors.
    pub(crate) num_rows: u64,
    /// Number of heads.
    pub(crate) num_heads: usize,
    /// Elements in one head.
    pub(crate) head_dim: usize,
    /// The kernel.
    pub(crate) variant: ForwardVariant,
    /// Why that one.
    pub(crate) reason: Reason,
    /// Half-open ranges of rows (`item * seq_len + token`) whose output and softmax state are cleared to 0 first.
    pub(crate) clears: Vec<(u64, u64)>,
    /// The dispatches, in order.
    pub(crate) dispatches: Vec<AttentionDispatch>,
    /// Buffers leased by a forward that is recorded alone.
    pub(crate) buffers: Vec<PlannedBuffer>,
    /// Floating point operations: `4 * B * N * H * D * sum(w / r^2)` over the valid tokens, half of it under the causal mask,
    /// a G-th of it where heads are partitioned among G branches.
    pub flop: u64,
    /// Bytes that must be moved at least: q, k, v read once, the output written once.
    pub byte_floor: u64,
}

impl DilatedAttentionConfig {
    /// Plans the forward of tensors of `shape` and `dtype` on a device with `caps`. Needs no device.
    ///
    /// # Errors
    /// [`Error::SizeOverflow`], [`PoolError::BufferTooLarge`] when a tensor exceeds a buffer of the device,
    /// [`Error::BindingTooSmall`] when a binding cannot even cover one token, [`Error::WrongDType`] for integers.
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

    /// As [`plan_forward`](Self::plan_forward), with a kernel of the caller's choice.
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
        let forward = PlannedPass {
            pass: Pass::Forward,
            tile: variant.rows_per_workgroup(),
            columns: 1,
        };
        let rounds = [vec![vec![forward]]];
        let planner = Planner::new(self, shape, caps, &rounds, None, variant.format)?;
        let dispatches = planner.plan()?;
        let buffers = buffers(self, num_rows, variant.format, &dispatches, caps);
        Ok(ForwardPlan {
            shape: shape.clone(),
            num_rows,
            num_heads: self.num_heads(),
            head_dim: self.head_dim(),
            variant,
            reason,
            clears,
            dispatches,
            buffers,
            flop: forward_flop(self, shape) as u64,
            byte_floor: tensor_bytes.saturating_mul(4),
        })
    }
}

/// Bytes of the larger of q and k.
///
/// # Errors
/// [`Error::SizeOverflow`], [`PoolError::BufferTooLarge`].
pub(super) fn tensor_bytes(
    config: &DilatedAttentionConfig,
    shape: &AttentionShape,
    format: ElementFormat,
    caps: &DeviceCaps,
) -> Result<u64> {
    let row_bytes = RowLayout::of_activations(config, format).row_bytes;
    let len = shape.seq_len().max(shape.key_len());
    let num_rows = shape.batch() as u64 * len as u64;
    let bytes = row_bytes
        .checked_mul(num_rows)
        .ok_or_else(|| Error::SizeOverflow {
            what: "q",
            given: format!("{num_rows} rows of {row_bytes} bytes"),
        })?;
    if bytes > caps.max_buffer_bytes {
        return Err(PoolError::BufferTooLarge {
            label: "out",
            requested_bytes: bytes,
            limit_bytes: caps.max_buffer_bytes,
        }
        .into());
    }
    Ok(bytes)
}

/// Floating point operations of a forward over the valid tokens.
pub(super) fn forward_flop(config: &DilatedAttentionConfig, shape: &AttentionShape) -> f64 {
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

/// Ranges of the rows of tensors with `len` tokens an item that no dispatch writes first.
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
    let state_bytes = num_rows * RowLayout::of_state(config).row_bytes;
    let out_bytes = num_rows * RowLayout::of_activations(config, format).row_bytes;
    let mut buffers = vec![
        PlannedBuffer::storage("out", out_bytes, caps),
        PlannedBuffer::storage("softmax_state", state_bytes, caps),
    ];
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

    /// Bytes that a forward recorded alone asks the pool for, at its peak: the output, the softmax state, parameters and their
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

    /// Byte range of the softmax state of rows `begin .. end` of the output.
    pub(crate) fn state_range(&self, (begin, end): (u64, u64)) -> ByteRange {
        let row_bytes = self.num_heads as u64 * 8;
        ByteRange {
            offset: begin * row_bytes,
            size: (end - begin) * row_bytes,
        }
    }

    /// Byte range of rows `begin .. end` of the output.
    pub(crate) fn out_range(&self, (begin, end): (u64, u64)) -> ByteRange {
        let element_bytes = u64::from(self.variant.format.bytes());
        let row_bytes = (self.num_heads * self.head_dim) as u64 * element_bytes;
        ByteRange {
            offset: begin * row_bytes,
            size: (end - begin) * row_bytes,
        }
    }
}
