//! The forward plan: which dispatches compute an attention, with which windows, in which memory.
//!
//! ```text
//! for each run of batch items of equal length, for each branch (one that covers every token first):
//!   items together     while one binding covers them whole
//!   else segments      of one item, as many as a binding covers
//!   else rows          of one segment: (query rows) x (key rows), joined by the same merge that joins branches
//! ```
//! The first dispatch that reaches a (row, head) *writes* (O, LSE), all later ones *merge*; what no dispatch writes is
//! cleared before. With a branch of rate 1, which goes first and covers everything, nothing is cleared but the tails of
//! short items.

use std::fmt;

use super::branch::BranchGeometry;
use super::facts::DeviceFacts;
use super::window::{ByteRange, RowLayout, TokenWindow, word_windows};
use super::workspace::staging_bytes;
use crate::config::{AttentionShape, DilatedAttentionConfig, Heads, Mask};
use crate::error::{Error, Result};
use crate::kernel::forward::ForwardVariant;
use crate::kernel::{FillParams, ForwardParams, fold_grid};
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
    fn len(self) -> u32 {
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
    let planned = |label, bytes: u64| {
        let requested_bytes = bytes.max(4).next_multiple_of(4);
        PlannedBuffer {
            label,
            requested_bytes,
            class_bytes: class_bytes(requested_bytes, facts.max_buffer_bytes),
        }
    };
    let out_bytes = num_rows * u64::from(config.embed_dim()) * 4;
    let lse_bytes = num_rows * u64::from(config.num_heads()) * 4;
    let mut buffers = vec![planned("out", out_bytes), planned("softmax_lse", lse_bytes)];
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
        buffers.push(planned("params", params_bytes));
        let mut left = params_bytes;
        while left > 0 {
            let chunk = staging_bytes(left);
            buffers.push(planned("staging", chunk));
            left = left.saturating_sub(chunk);
        }
    }
    buffers
}

struct Planner<'a> {
    config: &'a DilatedAttentionConfig,
    facts: &'a DeviceFacts,
    seq_len: u32,
    variant: ForwardVariant,
    tensor: RowLayout,
    lse: RowLayout,
    dispatches: Vec<ForwardDispatch>,
}

impl Planner<'_> {
    /// All branches over items that have `valid_len` tokens each.
    fn plan_items(&mut self, items: Range, valid_len: u32) -> Result<()> {
        let mut geometries: Vec<BranchGeometry> = (0..self.config.branches().len() as u32)
            .map(|branch| BranchGeometry::new(self.config, branch, valid_len))
            .filter(|geometry| geometry.head_count > 0)
            .collect();
        // The sort is stable: other branches keep their order.
        geometries.sort_by_key(|geometry| !geometry.covers_everything(self.config.num_heads()));
        let every_branch = self.config.get_heads() == Heads::EveryBranch;
        for (order, geometry) in geometries.iter().enumerate() {
            self.plan_branch(geometry, items, every_branch && order > 0)?;
        }
        Ok(())
    }

    fn plan_branch(&mut self, geometry: &BranchGeometry, items: Range, merges: bool) -> Result<()> {
        let max_rows = self.tensor.max_rows(self.facts);
        let heads = Range {
            begin: geometry.head_begin,
            end: geometry.head_begin + geometry.head_count,
        };
        // Later segments would be written behind the sequence.
        let num_segments = geometry
            .num_segments
            .min(geometry.seq_len.div_ceil(geometry.output_stride));
        let unit = Unit {
            items,
            heads,
            segments: Range {
                begin: 0,
                end: num_segments,
            },
            rows: Range {
                begin: 0,
                end: geometry.rows_per_segment,
            },
            key_rows: Range {
                begin: 0,
                end: geometry.rows_per_segment,
            },
            merges,
        };
        let items_per_window = (max_rows / u64::from(self.seq_len)) as u32;
        if items_per_window > 0 {
            for items in chunks(items, items_per_window) {
                self.push(geometry, Unit { items, ..unit })?;
            }
            return Ok(());
        }
        let segment_tokens = geometry.segment_length.max(geometry.output_stride);
        let segments_per_window = (max_rows / u64::from(segment_tokens)) as u32;
        for items in chunks(items, 1) {
            if segments_per_window > 0 {
                for segments in chunks(unit.segments, segments_per_window) {
                    self.push(
                        geometry,
                        Unit {
                            items,
                            segments,
                            ..unit
                        },
                    )?;
                }
                continue;
            }
            for segments in chunks(unit.segments, 1) {
                self.plan_segment(
                    geometry,
                    Unit {
                        items,
                        segments,
                        ..unit
                    },
                )?;
            }
        }
        Ok(())
    }

    /// One segment of one item, too large for a binding: query rows times key rows.
    fn plan_segment(&mut self, geometry: &BranchGeometry, unit: Unit) -> Result<()> {
        let max_rows = self.tensor.max_rows(self.facts);
        let rate = u64::from(geometry.dilation_rate);
        // A window of R rows spans R * r tokens over all heads' offsets, (R - 1) * r + 1 for one head.
        let (heads_per_window, rows_per_window) = match max_rows / rate {
            0 => (1, (max_rows - 1) / rate + 1),
            rows => (unit.heads.len(), rows),
        };
        let rows_per_window = rows_per_window.min(u64::from(u32::MAX)) as u32;
        for heads in chunks(unit.heads, heads_per_window) {
            for rows in chunks(unit.rows, rows_per_window) {
                for key_rows in chunks(unit.key_rows, rows_per_window) {
                    if geometry.causal && key_rows.begin >= rows.end {
                        continue;
                    }
                    let merges = unit.merges || key_rows.begin > 0;
                    self.push(
                        geometry,
                        Unit {
                            heads,
                            rows,
                            key_rows,
                            merges,
                            ..unit
                        },
                    )?;
                }
            }
        }
        Ok(())
    }

    fn push(&mut self, geometry: &BranchGeometry, unit: Unit) -> Result<()> {
        // Rows of this unit may lie behind the sequence for every head: then there is nothing to write.
        let Some(out_tokens) = token_span(geometry, &unit, geometry.output_stride, unit.rows)
        else {
            return Ok(());
        };
        // Phantom rows alone read no query, what is bound then is not read.
        let q_tokens =
            token_span(geometry, &unit, geometry.segment_length, unit.rows).unwrap_or(out_tokens);
        let kv_tokens = token_span(geometry, &unit, geometry.segment_length, unit.key_rows);
        let kv_tokens = match kv_tokens {
            Some(tokens) => tokens,
            // Without keys, rows still get zero keys or become uncovered; what is bound is not read.
            None if unit.key_rows.begin == 0 => q_tokens,
            None => return Ok(()),
        };
        let window = |layout: &RowLayout, tokens: (u64, u64)| {
            let first = u64::from(unit.items.begin) * u64::from(self.seq_len) + tokens.0;
            let last = u64::from(unit.items.end - 1) * u64::from(self.seq_len) + tokens.1;
            layout
                .window(first, last, self.facts)
                .ok_or(Error::BindingTooSmall {
                    what: "q",
                    requested_bytes: (last - first) * layout.row_bytes,
                    limit_bytes: self.facts.max_binding_bytes,
                })
        };
        let tiles = unit.rows.len().div_ceil(self.variant.rows_per_workgroup());
        let num_workgroups = [unit.items, unit.segments, unit.heads]
            .iter()
            .try_fold(tiles, |product, range| product.checked_mul(range.len()));
        let grid = num_workgroups
            .and_then(|n| Some((n, fold_grid(n, self.facts.max_workgroups_per_dimension)?)));
        let Some((num_workgroups, grid)) = grid else {
            return Err(Error::SizeOverflow {
                what: "workgroups of one dispatch",
                given: format!(
                    "{} items, {} segments, {} heads, {tiles} tiles",
                    unit.items.len(),
                    unit.segments.len(),
                    unit.heads.len()
                ),
            });
        };
        self.dispatches.push(ForwardDispatch {
            geometry: geometry.clone(),
            items: unit.items,
            heads: unit.heads,
            segments: unit.segments,
            rows: unit.rows,
            key_rows: unit.key_rows,
            merges: unit.merges,
            q: window(&self.tensor, q_tokens)?,
            kv: window(&self.tensor, kv_tokens)?,
            out: window(&self.tensor, out_tokens)?,
            lse: window(&self.lse, out_tokens)?,
            // Tokens are below 2^31.
            first_tokens: [q_tokens.0, kv_tokens.0, out_tokens.0].map(|token| token as u32),
            num_workgroups,
            grid,
        });
        Ok(())
    }
}

/// What one dispatch is to do.
#[derive(Clone, Copy)]
struct Unit {
    items: Range,
    heads: Range,
    segments: Range,
    rows: Range,
    key_rows: Range,
    merges: bool,
}

/// Tokens that rows `rows` of the unit's segments touch when segments are `stride` tokens apart, if any exists.
fn token_span(
    geometry: &BranchGeometry,
    unit: &Unit,
    stride: u32,
    rows: Range,
) -> Option<(u64, u64)> {
    let offsets = (unit.heads.begin..unit.heads.end).map(|head| geometry.offset(head));
    let (first_offset, last_offset) = (offsets.clone().min()?, offsets.max()?);
    let (stride, rate) = (u64::from(stride), u64::from(geometry.dilation_rate));
    let begin = u64::from(unit.segments.begin) * stride
        + u64::from(rows.begin) * rate
        + u64::from(first_offset);
    let end = (u64::from(unit.segments.end) - 1) * stride
        + (u64::from(rows.end) - 1) * rate
        + u64::from(last_offset)
        + 1;
    let end = end
        .min(u64::from(unit.segments.end) * stride)
        .min(u64::from(geometry.seq_len));
    (begin < end).then_some((begin, end))
}

/// `range` in as few pieces of at most `size >= 1` as possible, of nearly the same size.
fn chunks(range: Range, size: u32) -> impl Iterator<Item = Range> {
    let pieces = range.len().div_ceil(size).max(1);
    let step = range.len().div_ceil(pieces).max(1);
    (range.begin..range.end)
        .step_by(step as usize)
        .map(move |begin| Range {
            begin,
            end: range.end.min(begin.saturating_add(step)),
        })
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
            batch_count: self.items.len(),
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
            first_workgroup: 0,
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

impl fmt::Display for ForwardPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "forward of {} x {} tokens, {} heads of {}, kernel {}",
            self.shape.batch(),
            self.shape.seq_len(),
            self.num_heads,
            self.head_dim,
            self.variant
        )?;
        writeln!(
            f,
            "branch  segment  rate     items  segments       rows       keys  mode   workgroups (grid)   MiB bound q / kv"
        )?;
        for dispatch in &self.dispatches {
            let mib = |window: &TokenWindow| window.bytes.size as f64 / f64::from(1 << 20);
            let range = |range: Range| format!("{}..{}", range.begin, range.end);
            writeln!(
                f,
                "{:6}  {:7}  {:4}  {:>8}  {:>8}  {:>9}  {:>9}  {:5}  {:10} ({} x {})   {:.1} / {:.1}",
                dispatch.geometry.branch,
                dispatch.geometry.segment_length,
                dispatch.geometry.dilation_rate,
                range(dispatch.items),
                range(dispatch.segments),
                range(dispatch.rows),
                range(dispatch.key_rows),
                if dispatch.merges { "merge" } else { "write" },
                dispatch.num_workgroups,
                dispatch.grid[0],
                dispatch.grid[1],
                mib(&dispatch.q),
                mib(&dispatch.kv),
            )?;
        }
        let cleared: u64 = self.clears.iter().map(|(begin, end)| end - begin).sum();
        writeln!(f, "cleared before: {cleared} of {} rows", self.num_rows)?;
        for buffer in &self.buffers {
            writeln!(
                f,
                "leases {:<12} {:>13} bytes, class {:>13}",
                buffer.label, buffer.requested_bytes, buffer.class_bytes
            )?;
        }
        write!(
            f,
            "requested {} bytes, held {} bytes, {:.3} GFLOP, byte floor {}",
            self.requested_bytes(),
            self.held_bytes(),
            self.flop as f64 / 1e9,
            self.byte_floor
        )
    }
}
