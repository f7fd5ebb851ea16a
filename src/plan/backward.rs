//! The backward plan: which dispatches compute the gradients of an attention, with which windows, in which memory.
//!
//! ```text
//! branch delta  the sweep: for each branch, each tile of rows walks over its keys and adds up p = 2^(score - m) and p (dout . v).
//!          True gradient: over the keys of all branches, which are swept before anything else.
//!          Constant mixing weights: over one branch's keys, swept anew for each branch.
//! dq       for each branch, each tile of rows walks over its keys
//! dk, dv   for each branch, each tile of keys walks over the rows that see it
//! ```
//! or, where gradients are products of matrices, for each window of rows and keys of a branch
//! ```text
//! weights  p and ds of each row with each key, in a buffer that all windows use in turn
//! dq, dk, dv    products of these with keys, queries and the output's gradient
//! ```
//! Nothing but the softmax state is kept from the forward: its m, and its s where mixing weights are constants. The weights that
//! gradients are summed with are those of the sweep, to the bit, and its sums decide what is taken off: so the rows of ds add up
//! to 0 whatever digits the scores have lost, and what keys have in common drops out of dq. docs/decisions.md says more.
//!
//! Each gradient is
//! written by one workgroup at a time, in an order that the plan fixes: no atomics, the same bits on every run.

use super::dispatch::AttentionDispatch;
use super::forward::{clears, forward_flop, tensor_bytes};
use super::planner::{PlannedPass, Planner, Round};
use super::window::RowLayout;
use super::workspace::{ParamsLayout, PlannedBuffer};
use crate::config::{AttentionShape, DilatedAttentionConfig, MixGradient};
use crate::device::DeviceCaps;
use crate::device::{DType, ElementFormat};
use crate::error::Result;
use crate::kernels::Pass;
use crate::kernels::attention_backward::{BackwardFamily, BackwardVariant};
use crate::kernels::{AttentionParams, Choice, Family, Reason};

/// Everything the backward will tell the device, as plain data. Made by [`DilatedAttentionConfig::plan_backward`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BackwardPlan {
    /// Shape of the call.
    pub shape: AttentionShape,
    /// Number of heads.
    pub(crate) num_heads: usize,
    /// Elements in one head.
    pub(crate) head_dim: usize,
    /// The kernels.
    pub(crate) variant: BackwardVariant,
    /// Why those.
    pub(crate) reason: Reason,
    /// Half-open ranges of rows (`item * seq_len + token`) of dq and of the row statistics that are cleared first.
    pub(crate) query_clears: Vec<(u64, u64)>,
    /// Half-open ranges of rows (`item * key_len + token`) of dk and dv that are cleared first.
    pub(crate) key_clears: Vec<(u64, u64)>,
    /// The dispatches, in order.
    pub(crate) dispatches: Vec<AttentionDispatch>,
    /// Bytes of the weights of a window, which its gradients are products of; 0 for kernels that keep none.
    pub(crate) weights_bytes: u64,
    /// Buffers leased by a backward that is recorded alone.
    pub(crate) buffers: Vec<PlannedBuffer>,
    /// Floating point operations: 2.5 times those of the forward (5 products of matrices for 2). More are done: the sweep takes 2
    /// products, and without weights in memory each of the two passes computes the scores again, 9 products altogether.
    pub flop: u64,
    /// Bytes that must be moved at least: q, k, v and dout read once, dq, dk and dv written once.
    pub byte_floor: u64,
}

impl DilatedAttentionConfig {
    /// Plans the backward of tensors of `shape` and `dtype` on a device with `caps`. Needs no device.
    ///
    /// # Errors
    /// As [`plan_forward`](Self::plan_forward).
    pub fn plan_backward(
        &self,
        shape: &AttentionShape,
        dtype: DType,
        caps: &DeviceCaps,
    ) -> Result<BackwardPlan> {
        let format = ElementFormat::of("q", dtype, caps)?;
        let choice = BackwardFamily::of(self, format).choice(caps);
        self.plan_backward_with(shape, caps, choice)
    }

    /// As [`plan_backward`](Self::plan_backward), with kernels of the caller's choice.
    ///
    /// # Errors
    /// As [`plan_forward_with`](Self::plan_forward_with).
    pub fn plan_backward_with(
        &self,
        shape: &AttentionShape,
        caps: &DeviceCaps,
        choice: impl Into<Choice<BackwardVariant>>,
    ) -> Result<BackwardPlan> {
        let Choice { variant, reason } = choice.into();
        variant.check(self.head_dim(), caps)?;
        let tensor_bytes = tensor_bytes(self, shape, variant.format, caps)?;
        let planned = |pass| PlannedPass {
            pass,
            tile: variant.rows_per_workgroup(),
            columns: variant.column_tiles(pass),
        };
        let sweep = vec![planned(Pass::BranchDelta)];
        let gradients = variant.passes().iter().copied().map(planned).collect();
        let rounds: Vec<Round> = match self.gradient() {
            MixGradient::Exact => vec![vec![sweep], vec![gradients]],
            MixGradient::DetachedMix => vec![vec![sweep, gradients]],
        };
        let tile = variant.weights_tile();
        let planner = Planner::new(self, shape, caps, &rounds, tile, variant.format)?;
        let dispatches = planner.plan()?;
        let weights_bytes = tile.map_or(0, |tile| {
            let of_weights = dispatches.iter().filter(|d| d.pass == Pass::Weights);
            let bytes = of_weights.map(|dispatch| dispatch.weights_bytes(tile));
            bytes.max().unwrap_or(0)
        });
        // Keys that no row of their item sees are reached by no dispatch.
        let reached = |item| match shape.valid_len(item) {
            0 => 0,
            _ => shape.valid_key_len(item),
        };
        let batch = shape.batch();
        let mut params = ParamsLayout::new(caps);
        dispatches
            .iter()
            .for_each(|_| params.add::<AttentionParams>());
        let planned = |label, bytes| PlannedBuffer::storage(label, bytes, caps);
        let rows = |len: usize| batch as u64 * len as u64;
        let width = RowLayout::of_activations(self, variant.format).row_bytes;
        let mut buffers = vec![
            planned(
                "row statistics",
                rows(shape.seq_len()) * RowLayout::of_row_stats(self).row_bytes,
            ),
            planned("dq", rows(shape.seq_len()) * width),
            planned("dk", rows(shape.key_len()) * width),
            planned("dv", rows(shape.key_len()) * width),
        ];
        if weights_bytes > 0 {
            buffers.push(planned("weights", weights_bytes));
        }
        buffers.extend(params.buffers());
        Ok(BackwardPlan {
            shape: shape.clone(),
            num_heads: self.num_heads(),
            head_dim: self.head_dim(),
            variant,
            reason,
            query_clears: clears(self, batch, shape.seq_len(), |item| shape.valid_len(item)),
            key_clears: clears(self, batch, shape.key_len(), reached),
            dispatches,
            weights_bytes,
            buffers,
            flop: (2.5 * forward_flop(self, shape)) as u64,
            byte_floor: tensor_bytes.saturating_mul(7),
        })
    }
}

impl BackwardPlan {
    /// Number of dispatches.
    pub fn num_dispatches(&self) -> usize {
        self.dispatches.len()
    }

    /// Bytes that a backward recorded alone asks the pool for, at its peak: the gradients, the row statistics, parameters and their
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
}
