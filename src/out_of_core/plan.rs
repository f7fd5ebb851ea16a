//! The plan of a run: blocks, and the memory that they take.

use std::fmt;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use super::packed::branch_bytes;
use super::progress::Facts;
use crate::attention::DilatedAttention;
use crate::config::{AttentionShape, DilatedAttentionConfig, in_u32};
use crate::device::{DType, DeviceCaps, ElementFormat};
use crate::error::{Error, Result};
use crate::kernels::Choice;
use crate::kernels::attention_forward::ForwardVariant;
use crate::plan::branch::BranchGeometry;
use crate::plan::window::RowLayout;
use crate::plan::{
    BlockPlan, BlockSize, PlannedBuffer, Tokens, forward_flop, plan_block, staging_bytes, time_at,
};
use crate::recorder::SliceOptions;

/// What a run out of core does, and the memory that it takes. Made by [`DilatedAttention::plan_out_of_core`].
#[derive(Clone, Debug)]
pub struct OutOfCorePlan {
    /// What the plan was made for.
    pub(super) config: DilatedAttentionConfig,
    pub(super) caps: DeviceCaps,
    pub(super) shape: AttentionShape,
    pub(super) dtype: DType,
    pub(super) choice: Choice<ForwardVariant>,
    pub(super) size: BlockSize,
    pub(super) options: OutOfCoreOptions,
    /// The layer around the attention; `None` for attention alone.
    pub(super) layer: Option<LayerNeeds>,
    /// Branches whose packed keys the host keeps.
    pub(super) packed: Vec<BranchGeometry>,
    /// Most bytes of device memory, staging and readback included. The host takes up to as many for what it reads ahead.
    pub device_bytes: u64,
    /// Bytes of packed keys and values, in the host's memory or in the scratch file.
    pub packed_bytes: u64,
    /// Floating point operations, as of a [`ForwardPlan`](crate::ForwardPlan).
    pub flop: u64,
}

/// How a run out of core is cut, and what it keeps on a disk.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct OutOfCoreOptions {
    /// Most bytes of device memory.
    pub budget_bytes: u64,
    /// Most outputs of a block; `None` for as many as the budget holds. Smaller blocks are slower, and after each the progress is
    /// written down.
    pub block_tokens: Option<NonZeroUsize>,
    /// Where packed keys are kept; `None` for the host's memory.
    pub scratch_file: Option<PathBuf>,
    /// Where the progress is written down; `None` for nowhere.
    pub progress_file: Option<PathBuf>,
    /// How long the device computes at a time, which is also how soon a run can be cancelled. 100 ms unless set.
    pub slices: SliceOptions,
}

impl OutOfCoreOptions {
    /// Blocks as large as `budget_bytes` of device memory hold; packed keys in the host's memory; no progress file.
    pub fn new(budget_bytes: u64) -> Self {
        Self {
            budget_bytes,
            block_tokens: None,
            scratch_file: None,
            progress_file: None,
            slices: SliceOptions::default().with_target(Duration::from_millis(100)),
        }
    }

    /// Sets the most [outputs of a block](Self::block_tokens).
    pub fn with_block_tokens(self, block_tokens: Option<NonZeroUsize>) -> Self {
        Self {
            block_tokens,
            ..self
        }
    }

    /// Keeps packed keys in a file at `path`, which must not exist, where the host's memory does not hold them. The run removes it when
    /// it is done. A run with a progress file that is dropped or killed before leaves it, to go on with it.
    pub fn with_scratch_file(self, path: impl Into<PathBuf>) -> Self {
        Self {
            scratch_file: Some(path.into()),
            ..self
        }
    }

    /// Writes the progress to a file at `path` after each block, once its outputs are on the disk
    /// ([`TokenSink::sync`](super::TokenSink::sync)). If the file is there when a run begins, the run goes on where that one was; it
    /// must have the same plan, inputs and outputs. Packed keys in memory are packed again, as far as blocks still need them. The file
    /// stays when the run is done: remove it once the outputs are in use.
    pub fn with_progress_file(self, path: impl Into<PathBuf>) -> Self {
        Self {
            progress_file: Some(path.into()),
            ..self
        }
    }

    /// Sets how long the device [computes at a time](Self::slices).
    pub fn with_slices(self, slices: SliceOptions) -> Self {
        Self { slices, ..self }
    }
}

/// Bytes for parameters of dispatches and their staging. A work has a dispatch for all whole segments, and some for the heads of
/// the rows at either end of a block.
const PARAMS_BYTES: u64 = 512 << 10;

/// Blocks begin at multiples of this many tokens, if they are that long.
const WHOLE_TOKENS: u64 = 64;

impl DilatedAttention {
    /// Plans a forward over one sequence of `tokens` tokens of `dtype` that takes at most as much device memory as `options` say.
    ///
    /// # Errors
    /// [`Error::PlanOverBudget`] when the budget does not hold the smallest block; [`Error::InvalidShape`] for a sequence without
    /// tokens or too long, [`Error::WrongDType`] for integers.
    pub fn plan_out_of_core(
        &self,
        tokens: usize,
        dtype: DType,
        options: &OutOfCoreOptions,
    ) -> Result<OutOfCorePlan> {
        OutOfCorePlan::new(self, tokens, dtype, options, None)
    }
}

/// What a layer adds to the plan of its attention.
#[derive(Clone, Debug)]
pub(crate) struct LayerNeeds {
    /// The model, in words.
    pub model: String,
    /// Rows of the layer's input that go through its products at a time.
    pub chunk_rows: usize,
    /// Device bytes that they take on their way.
    pub chunk_bytes: u64,
    /// Floating point operations of the products, for each token.
    pub token_flop: f64,
}

impl OutOfCorePlan {
    /// The plan of `attention`, or of the layer around it.
    ///
    /// # Errors
    /// As [`DilatedAttention::plan_out_of_core`].
    pub(crate) fn new(
        attention: &DilatedAttention,
        tokens: usize,
        dtype: DType,
        options: &OutOfCoreOptions,
        layer: Option<LayerNeeds>,
    ) -> Result<Self> {
        let shape = AttentionShape::new(1, tokens)?;
        if tokens == 0 {
            return Err(Error::InvalidShape {
                what: "sequence out of core".into(),
                given: "0 tokens".to_owned(),
                need: "at least one".to_owned(),
            });
        }
        let config = attention.config();
        ElementFormat::of("q", dtype, attention.context().caps())?;
        // The output is f32 until it is complete, so kernels are those of f32.
        let choice = attention.forward_choice(DType::F32)?;
        let caps = attention.context().caps_for(ElementFormat::F32);
        let seq_len = in_u32(tokens);
        let geometries: Vec<_> = (0..config.branches().len() as u32)
            .map(|branch| BranchGeometry::cross(config, branch, seq_len, seq_len))
            .filter(|geometry| geometry.head_count > 0)
            .collect();
        let memory = Memory {
            row: RowLayout::of_activations(config, ElementFormat::F32, caps),
            state: RowLayout::of_state(config, caps),
            stored_bytes: config.embed_dim() as u64 * dtype.bytes(),
            converts: dtype != DType::F32,
            layer: layer.as_ref(),
            caps,
        };
        let size = memory.largest(tokens as u64, &geometries, options)?;
        let is_packed =
            |geometry: &BranchGeometry| !size.is_short(geometry) && geometry.dilation_rate > 1;
        let mut plan = Self {
            config: config.clone(),
            caps: caps.clone(),
            dtype,
            choice,
            packed: geometries.into_iter().filter(is_packed).collect(),
            packed_bytes: 0,
            device_bytes: memory.bytes(size),
            flop: forward_flop(config, &shape) as u64,
            size,
            shape,
            options: options.clone(),
            layer: None,
        };
        if let Some(layer) = &layer {
            plan.flop += (layer.token_flop * tokens as f64) as u64;
        }
        plan.layer = layer;
        let head_bytes = plan.head_bytes();
        let bytes = plan.packed.iter();
        let bytes = bytes.map(|geometry| branch_bytes(geometry, head_bytes));
        plan.packed_bytes = bytes.fold(0, u64::saturating_add);
        Ok(plan)
    }

    /// Whether it is of a layer, and not of attention alone.
    pub(super) fn is_layer(&self) -> bool {
        self.layer.is_some()
    }

    /// Bytes of a token on the host.
    pub(super) fn row_bytes(&self) -> usize {
        self.config.embed_dim() * self.dtype.bytes() as usize
    }

    /// Bytes of a packed head. Those of a layer come from the device, in f32.
    pub(super) fn head_bytes(&self) -> usize {
        let dtype = if self.is_layer() {
            DType::F32
        } else {
            self.dtype
        };
        self.config.head_dim() * dtype.bytes() as usize
    }

    /// The plan of a block.
    pub(super) fn block(&self, outputs: &Tokens) -> Result<BlockPlan> {
        plan_block(
            &self.config,
            &self.shape,
            &self.caps,
            self.choice.variant,
            outputs.clone(),
            self.size,
        )
    }

    /// What tells the plan from others.
    pub(super) fn facts(&self) -> Facts {
        let facts = [
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
            ("attention", format!("{:?}", self.config)),
            ("tokens", self.tokens().to_string()),
            ("type", self.dtype.to_string()),
            ("block_tokens", self.size.tokens.to_string()),
            ("held_tokens", self.size.held_tokens.to_string()),
            ("kernel", self.choice.variant.to_string()),
            (
                "scratch_file",
                match self.options.scratch_file {
                    None => "none".to_owned(),
                    Some(_) => "used".to_owned(),
                },
            ),
        ];
        facts.map(|(what, value)| (what.to_owned(), value)).into()
    }
}

/// What the memory of a block follows from.
struct Memory<'a> {
    row: RowLayout,
    state: RowLayout,
    /// Bytes of a token on the host.
    stored_bytes: u64,
    converts: bool,
    layer: Option<&'a LayerNeeds>,
    caps: &'a DeviceCaps,
}

impl Memory<'_> {
    /// Device bytes of a block.
    fn bytes(&self, size: BlockSize) -> u64 {
        let storage = |bytes| PlannedBuffer::storage("block", bytes, self.caps).class_bytes;
        let held = storage(size.held_tokens * self.row.row_bytes);
        let stored = size.held_tokens * self.stored_bytes;
        let half = if self.converts { storage(stored) } else { 0 };
        let out = storage(size.tokens * self.row.row_bytes);
        let state = storage(size.tokens * self.state.row_bytes);
        // In chunks, each for what is left of an upload.
        let staging = |bytes: u64| {
            let (mut all, mut left) = (0, bytes);
            while left > 0 {
                let chunk = staging_bytes(left);
                all += chunk;
                left = left.saturating_sub(chunk);
            }
            all
        };
        // With a seal.
        let readback = |row_bytes: u64| storage(size.tokens * row_bytes + 8);
        let readbacks = readback(self.stored_bytes) + readback(self.state.row_bytes);
        // A layer's packed keys are f32, and come to the host before as such.
        let (keys, of_layer) = match self.layer {
            None => (stored, 0),
            Some(layer) => (
                size.held_tokens * self.row.row_bytes,
                layer.chunk_bytes + 2 * readback(self.row.row_bytes),
            ),
        };
        let uploads = staging(stored) + 2 * staging(keys);
        3 * held + uploads + half + out + state + readbacks + of_layer + PARAMS_BYTES
    }

    /// The largest block within the budget that bindings cover.
    fn largest(
        &self,
        tokens: u64,
        geometries: &[BranchGeometry],
        options: &OutOfCoreOptions,
    ) -> Result<BlockSize> {
        let budget_bytes = options.budget_bytes;
        let covered = self
            .row
            .max_rows(self.caps)
            .min(self.state.max_rows(self.caps));
        let of = |block: u64| BlockSize::new(block, geometries);
        let fits = |block: u64| {
            let size = of(block);
            size.held_tokens <= covered && self.bytes(size) <= budget_bytes
        };
        if of(1).held_tokens > covered {
            return Err(Error::BindingTooSmall {
                what: "q".into(),
                requested_bytes: of(1).held_tokens * self.row.row_bytes,
                limit_bytes: self.caps.max_binding_bytes,
            });
        }
        if !fits(1) {
            return Err(Error::PlanOverBudget {
                what: "the smallest block out of core",
                requested_bytes: self.bytes(of(1)),
                budget_bytes,
                next_step: "raise the budget",
            });
        }
        // It fits up to `good`, but not up to `bad`.
        let most = options
            .block_tokens
            .map_or(tokens, |most| tokens.min(most.get() as u64));
        let (mut good, mut bad) = (1, most + 1);
        while bad - good > 1 {
            let middle = good + (bad - good) / 2;
            match fits(middle) {
                true => good = middle,
                false => bad = middle,
            }
        }
        if good == most {
            return Ok(of(most));
        }
        // At the ends of long segments, blocks need no tokens of their neighbours.
        let lengths = geometries
            .iter()
            .map(|geometry| u64::from(geometry.segment_length));
        let whole = lengths.filter(|length| *length <= good / 2).max();
        let whole = whole.unwrap_or(1).max(WHOLE_TOKENS.min(good));
        Ok(of(good - good % whole))
    }
}

impl OutOfCorePlan {
    /// Tokens of the sequence.
    pub fn tokens(&self) -> usize {
        self.shape.seq_len()
    }

    /// Outputs of a block.
    pub fn block_tokens(&self) -> usize {
        // At most the tokens of the sequence.
        self.size.tokens as usize
    }

    /// Number of blocks.
    pub fn num_blocks(&self) -> usize {
        self.tokens().div_ceil(self.block_tokens())
    }

    /// Time on an adapter that does `flop_per_second` floating point operations per second.
    pub fn time_at(&self, flop_per_second: f64) -> Duration {
        time_at(self.flop, flop_per_second)
    }
}

impl fmt::Display for OutOfCorePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        writeln!(
            f,
            "{} out of core of {} tokens of type {} in {} blocks of {}",
            if self.is_layer() { "layer" } else { "forward" },
            self.tokens(),
            self.dtype,
            self.num_blocks(),
            self.block_tokens(),
        )?;
        writeln!(
            f,
            "kernel {}, chosen: {}",
            self.choice.variant, self.choice.reason
        )?;
        for geometry in &self.packed {
            writeln!(
                f,
                "branch {}: {} packed rows of {} heads in each of {} segments",
                geometry.branch,
                geometry.rows_per_segment,
                geometry.head_count,
                geometry.num_segments,
            )?;
        }
        write!(
            f,
            "at most {:.1} MiB on the device, {:.1} MiB of packed keys in {}, {:.3} GFLOP",
            mib(self.device_bytes),
            mib(self.packed_bytes),
            match &self.options.scratch_file {
                None => "memory".to_owned(),
                Some(path) => path.display().to_string(),
            },
            self.flop as f64 / 1e9,
        )
    }
}
