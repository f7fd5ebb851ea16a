//! The backward plan: which dispatches compute the gradients of an attention, with which windows, in which memory.
//!
//! ```text
//! branch delta  the sweep: for each branch, each tile of rows walks over its keys and sums p = 2^(score - m) and p (dout . v).
//!               Exact gradient: sums over the keys of all branches, computed before everything else.
//!               Constant mixing weights: sums over the keys of one branch, computed anew for each branch.
//! dq            for each branch, each tile of rows walks over its keys
//! dk, dv        for each branch, each tile of keys walks over the rows that see it
//! ```
//! In the `broadcast` tier, dq, dk and dv are replaced by two steps for each window of rows and keys of a branch:
//! ```text
//! weights       p and ds of each row with each key, in a buffer that all windows use in turn
//! dq, dk, dv    matrix products of these with keys, queries and the gradient of the output
//! ```
//! From the forward, the backward needs only the softmax state: m, and s where mixing weights are constants. The gradients use
//! exactly the weights that the sweep has summed. So each row of ds sums to 0, however much precision the scores have lost, and
//! whatever all keys have in common cancels in dq. docs/decisions.md says more.
//!
//! In half precision, a gradient is rounded each time that a dispatch adds to it: once for each branch, as a plain implementation
//! does. Where segments are cut into windows, it would be rounded more often. From [`MORE_ROUNDINGS`] more on, inputs are converted
//! to f32 first, and gradients back at the end.
//!
//! No two workgroups write the same element of a gradient at a time, and the plan fixes the order of all writes. So there are no
//! atomics, and every run has the same bits.

use std::collections::HashMap;
use std::time::Duration;

use super::dispatch::{AttentionDispatch, packed_bytes};
use super::forward::{clears, forward_flop, tensor_bytes};
use super::needs;
use super::planner::{PlannedPass, Planner, Round};
#[cfg(not(target_arch = "wasm32"))]
use super::planner::{ShareNeeds, SharePlan, Tokens};
use super::window::RowLayout;
use super::workspace::{ParamsLayout, PlannedBuffer, check_sizes};
use crate::config::{AttentionShape, DilatedAttentionConfig, MixGradient};
use crate::device::{DType, DeviceCaps, ElementFormat};
use crate::error::Result;
use crate::kernels::activation::ElementwiseParams;
use crate::kernels::attention_backward::{BackwardFamily, BackwardVariant};
use crate::kernels::software::attention_backward::WeightsTile;
use crate::kernels::{AttentionParams, Choice, Family, Pass, Reason};
use crate::pool::STORAGE_USAGE;

/// Roundings of a gradient in half precision, beside one for each branch, from which on it is summed in f32.
const MORE_ROUNDINGS: usize = 2;

/// Everything that a backward does on the device, as plain data. Made by [`DilatedAttentionConfig::plan_backward`].
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
    /// Why these kernels were chosen.
    pub(crate) reason: Reason,
    /// Ranges of rows (`item * seq_len + token`, end excluded) of dq and of the row statistics that are set to 0 first.
    pub(crate) query_clears: Vec<(u64, u64)>,
    /// Ranges of rows (`item * key_len + token`, end excluded) of dk and dv that are set to 0 first.
    pub(crate) key_clears: Vec<(u64, u64)>,
    /// The type of the caller's tensors, if they are converted to f32 first, and the gradients back at the end.
    pub(crate) converted_from: Option<DType>,
    /// The dispatches, in order.
    pub(crate) dispatches: Vec<AttentionDispatch>,
    /// Bytes of packed keys, of packed values and of the packed gradients of each; 0 where no keys are packed.
    pub(crate) packed_bytes: u64,
    /// Bytes of the largest buffer of weights that a dispatch needs; 0 for kernels that keep no weights in memory.
    pub(crate) weights_bytes: u64,
    /// Buffers that a backward leases when it is the only one in a recording.
    pub(crate) buffers: Vec<PlannedBuffer>,
    /// Floating point operations that the gradients need: 2.5 times those of the forward (5 matrix products instead of 2). The
    /// kernels do more: the sweep does 2 products, and without weights in memory the scores are computed anew in two passes, 9
    /// products altogether.
    pub flop: u64,
    /// Least bytes that any kernel has to move: q, k, v and dout read once, dq, dk and dv written once.
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
        self.plan_backward_by(shape, dtype, caps, |dtype| {
            let format = ElementFormat::of("q", dtype, caps)?;
            Ok(BackwardFamily::of(self, format).choice(caps))
        })
    }

    /// As [`plan_backward`](Self::plan_backward), with the kernels that `choose` has for tensors of a type: of `dtype` or, where
    /// gradients of that type would be rounded too often, of f32.
    pub(crate) fn plan_backward_by(
        &self,
        shape: &AttentionShape,
        dtype: DType,
        caps: &DeviceCaps,
        choose: impl Fn(DType) -> Result<Choice<BackwardVariant>>,
    ) -> Result<BackwardPlan> {
        let plan = self.plan_backward_with(shape, caps, choose(dtype)?)?;
        let more = most_roundings(&plan.dispatches).saturating_sub(self.branches().len());
        if dtype == DType::F32 || more < MORE_ROUNDINGS {
            return Ok(plan);
        }
        let wide = self.plan_backward_with(shape, caps, choose(DType::F32)?)?;
        wide.converted(self, dtype, caps)
    }

    /// As [`plan_backward`](Self::plan_backward), with kernels that the caller chooses.
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
        let rounds = rounds(self, variant);
        let tile = variant.weights_tile();
        let planner = Planner::new(self, shape, caps, &rounds, tile, variant.format)?;
        let dispatches = planner.plan()?;
        let weights_bytes = weights_bytes(tile, &dispatches);
        // In an item without queries, no dispatch reaches the keys.
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
        let activations = RowLayout::of_activations(self, variant.format, caps);
        let tensors = [
            (
                "row statistics",
                shape.seq_len(),
                RowLayout::of_row_stats(self, caps),
            ),
            ("dq", shape.seq_len(), activations),
            ("dk", shape.key_len(), activations),
            ("dv", shape.key_len(), activations),
        ];
        let parts = tensors.iter().flat_map(|(label, len, layout)| {
            PlannedBuffer::parts(label, batch as u64 * *len as u64, layout, caps)
        });
        let mut buffers: Vec<_> = parts.collect();
        let packed_bytes = packed_bytes(&dispatches);
        if packed_bytes > 0 {
            let packed = ["packed k", "packed v", "packed dk", "packed dv"];
            buffers.extend(packed.map(|label| planned(label, packed_bytes)));
        }
        if weights_bytes > 0 {
            buffers.push(planned("weights", weights_bytes));
        }
        buffers.extend(params.buffers());
        check_sizes(&buffers, caps)?;
        Ok(BackwardPlan {
            shape: shape.clone(),
            num_heads: self.num_heads(),
            head_dim: self.head_dim(),
            variant,
            reason,
            converted_from: None,
            query_clears: clears(self, batch, shape.seq_len(), |item| shape.valid_len(item)),
            key_clears: clears(self, batch, shape.key_len(), reached),
            dispatches,
            packed_bytes,
            weights_bytes,
            buffers,
            flop: (2.5 * forward_flop(self, shape)) as u64,
            byte_floor: tensor_bytes.saturating_mul(7),
        })
    }
}

/// What a backward computes, one round after the other.
fn rounds(config: &DilatedAttentionConfig, variant: BackwardVariant) -> Vec<Round> {
    let planned = |pass| PlannedPass {
        pass,
        tile: variant.rows_per_workgroup(),
        columns: variant.column_tiles(pass),
    };
    let sweep = vec![planned(Pass::BranchDelta)];
    let gradients = variant.passes().iter().copied().map(planned).collect();
    match config.gradient() {
        MixGradient::Exact => vec![vec![sweep], vec![gradients]],
        MixGradient::DetachedMix => vec![vec![sweep, gradients]],
    }
}

/// Plans a rank's share of a backward, from the gradients of the outputs `share` of one sequence of the shape, which need `needs`.
/// Gradients are added to what is there. Also returns the bytes of the largest buffer of weights that a dispatch needs.
#[cfg(not(target_arch = "wasm32"))]
pub(crate) fn plan_backward_of_share(
    config: &DilatedAttentionConfig,
    shape: &AttentionShape,
    caps: &DeviceCaps,
    variant: BackwardVariant,
    (share, needs): (&Tokens, &ShareNeeds),
) -> Result<(SharePlan, u64)> {
    let (rounds, tile) = (rounds(config, variant), variant.weights_tile());
    let planner = Planner::new(config, shape, caps, &rounds, tile, variant.format)?;
    let plan = planner.plan_share(share, needs)?;
    let dispatches = plan.works.iter().flat_map(|work| &work.dispatches);
    let weights_bytes = weights_bytes(tile, dispatches);
    Ok((plan, weights_bytes))
}

/// Bytes of the largest buffer of weights that a dispatch needs.
fn weights_bytes<'a>(
    tile: Option<WeightsTile>,
    dispatches: impl IntoIterator<Item = &'a AttentionDispatch>,
) -> u64 {
    let Some(tile) = tile else { return 0 };
    let of_weights = dispatches.into_iter();
    let of_weights = of_weights.filter(|dispatch| dispatch.pass == Pass::Weights);
    let bytes = of_weights.map(|dispatch| dispatch.weights_bytes(tile));
    bytes.max().unwrap_or(0)
}

/// The most dispatches that add to a gradient of the same row or key.
fn most_roundings(dispatches: &[AttentionDispatch]) -> usize {
    // Of each pass: first item, head and segment, first row or key -> dispatches. Branches add up.
    let mut of_branch: HashMap<_, usize> = HashMap::new();
    for dispatch in dispatches {
        let first = match dispatch.pass {
            Pass::Dq => dispatch.rows.begin,
            Pass::Dk | Pass::DkDv => dispatch.key_rows.begin,
            _ => continue,
        };
        let [item, head, segment] =
            [dispatch.items, dispatch.heads, dispatch.segments].map(|range| range.begin);
        let place = [dispatch.geometry.branch, item, head, segment, first];
        *of_branch.entry((dispatch.pass, place)).or_default() += 1;
    }
    let mut most: HashMap<_, usize> = HashMap::new();
    for ((pass, [branch, ..]), count) in of_branch {
        let most = most.entry((pass, branch)).or_default();
        *most = count.max(*most);
    }
    let mut sums: HashMap<Pass, usize> = HashMap::new();
    for ((pass, _), count) in most {
        *sums.entry(pass).or_default() += count;
    }
    sums.into_values().max().unwrap_or(0)
}

/// Dispatches that convert a tensor of `num_rows` tokens between f32 and a type whose elements have `format`.
fn num_conversions(
    config: &DilatedAttentionConfig,
    num_rows: u64,
    format: ElementFormat,
    caps: &DeviceCaps,
) -> u64 {
    // A row of an elementwise kernel is a vec4.
    let layouts = [ElementFormat::F32, format].map(|format| {
        let tokens = RowLayout::of_activations(config, format, caps);
        RowLayout {
            row_bytes: tokens.element_bytes,
            ..tokens
        }
    });
    let count = num_rows * config.embed_dim() as u64 / 4;
    let (mut dispatches, mut begin) = (0, 0);
    while begin < count {
        let covered = layouts.map(|layout| layout.rows_from(begin, caps));
        begin += covered[0].min(covered[1]).max(1);
        dispatches += 1;
    }
    dispatches
}

impl BackwardPlan {
    /// This plan, which is of f32, for tensors of `dtype`.
    fn converted(
        self,
        config: &DilatedAttentionConfig,
        dtype: DType,
        caps: &DeviceCaps,
    ) -> Result<Self> {
        let format = ElementFormat::of("q", dtype, caps)?;
        let [rows, key_rows] = [self.shape.seq_len(), self.shape.key_len()]
            .map(|len| self.shape.batch() as u64 * len as u64);
        let parts = |tensors: &[(&'static str, u64)], format| {
            let layout = RowLayout::of_activations(config, format, caps);
            let parts = tensors.iter();
            parts
                .flat_map(|(label, rows)| PlannedBuffer::parts(label, *rows, &layout, caps))
                .collect::<Vec<_>>()
        };
        let inputs = [
            ("q", rows),
            ("k", key_rows),
            ("v", key_rows),
            ("dout", rows),
        ];
        let gradients = [("dq", rows), ("dk", key_rows), ("dv", key_rows)];
        let conversions = |tensors: &[(&'static str, u64)]| {
            let of_each = tensors.iter();
            of_each
                .map(|(_, rows)| num_conversions(config, *rows, format, caps))
                .sum::<u64>()
        };
        let mut params = ParamsLayout::new(caps);
        (0..conversions(&inputs)).for_each(|_| params.add::<ElementwiseParams>());
        let dispatches = self.dispatches.iter();
        dispatches.for_each(|_| params.add::<AttentionParams>());
        (0..conversions(&gradients)).for_each(|_| params.add::<ElementwiseParams>());
        let mut buffers = parts(&inputs, ElementFormat::F32);
        let kept = self.buffers.into_iter();
        buffers.extend(kept.filter(|buffer| buffer.usage == STORAGE_USAGE));
        buffers.extend(parts(&gradients, format));
        buffers.extend(params.buffers());
        Ok(Self {
            buffers,
            converted_from: Some(dtype),
            ..self
        })
    }

    /// Number of dispatches, without those that convert tensors.
    pub fn num_dispatches(&self) -> usize {
        self.dispatches.len()
    }

    /// Bytes that a backward asks the pool for when it is the only one in a recording: gradients, row statistics, weights,
    /// parameters and their staging. Inputs are not counted; they are the caller's.
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
    /// [`Error::PlanOverBudget`](crate::Error::PlanOverBudget) with both numbers.
    pub fn check_budget(&self, budget_bytes: u64) -> Result<()> {
        needs::check_budget(
            "the backward of the attention",
            self.held_bytes(),
            budget_bytes,
            "shorten the sequence, use half precision or raise the budget",
        )
    }

    /// Time of the backward on an adapter that does `flop_per_second` floating point operations per second.
    pub fn time_at(&self, flop_per_second: f64) -> Duration {
        needs::time_at(self.flop, flop_per_second)
    }
}
