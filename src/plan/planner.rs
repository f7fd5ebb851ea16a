//! Cuts the forward or backward of an attention into dispatches small enough for bindings.
//!
//! ```text
//! for each run of neighbouring batch items of equal length, for each round of passes,
//! for each branch (one that covers every token comes first), for each stage of the round, a dispatch takes
//!   several whole items    if a binding covers at least one item, and each tensor holds them in one part
//!   else segments          of one item, as many as a binding covers, of one part of each tensor
//!   else rows and keys     of one segment: a window of rows x a window of keys; results merge as those of branches do
//! ```
//! In that last case, keys of a branch with a dilation rate above 1 are packed first, a window of them after the other, and all
//! windows of rows follow. Where they lie, a binding covers only a `rate`-th of the keys that it covers when they are packed. Keys of
//! rate 1 are packed only where they lie in many short parts.
//!
//! **Borders.** A part of a tensor may end at any token. A row is one token further for each offset of the heads, so a border may
//! pass between the heads of a row. That row is computed on its own, in runs of heads on one side of the border.
//!
//! The `broadcast` tier of the backward keeps the weights of pairs of rows and keys in a buffer between kernels. There, rows and
//! keys are also cut into windows, so that the weights of a dispatch fit in that buffer, and as many heads, segments and items as
//! fit share a dispatch. All passes over such a part come before the next part.

#[cfg(not(target_arch = "wasm32"))]
mod block;
#[cfg(not(target_arch = "wasm32"))]
mod share;

#[cfg(all(feature = "models", not(target_arch = "wasm32")))]
pub(crate) use block::segments_of;
#[cfg(not(target_arch = "wasm32"))]
pub(crate) use block::{BlockKeys, BlockPlan, BlockSize, BlockWork, Tokens};
#[cfg(not(target_arch = "wasm32"))]
pub(crate) use share::{KeyNeed, ShareNeeds, SharePlan};

use super::branch::BranchGeometry;
use super::dispatch::{AttentionDispatch, KeySource, Range};
use super::window::{RowLayout, TokenWindow};
use crate::config::{AttentionShape, DilatedAttentionConfig, Heads, MixGradient, in_u32};
use crate::device::{ByteRange, DeviceCaps, ElementFormat};
use crate::error::{Error, Result};
use crate::kernels::pack_keys::PackKeys;
use crate::kernels::software::attention_backward::WeightsTile;
use crate::kernels::{Pass, fold_grid};

pub(super) struct Planner<'a> {
    config: &'a DilatedAttentionConfig,
    shape: &'a AttentionShape,
    caps: &'a DeviceCaps,
    /// What to compute, one round after the other over all branches.
    rounds: &'a [Round],
    /// The tile of weights that are kept in memory, if any are.
    weights: Option<WeightsTile>,
    tensor: RowLayout,
    state: RowLayout,
    row_stats: RowLayout,
    /// Rows that a binding covers in each of these layouts.
    max_rows: u64,
    /// What the tensors hold that are bound, if it is not the whole sequence.
    held: Option<Held>,
    dispatches: Vec<AttentionDispatch>,
}

impl<'a> Planner<'a> {
    /// # Errors
    /// [`Error::InvalidConfig`] when the configuration is not defined for the shape, [`Error::BindingTooSmall`].
    pub fn new(
        config: &'a DilatedAttentionConfig,
        shape: &'a AttentionShape,
        caps: &'a DeviceCaps,
        rounds: &'a [Round],
        weights: Option<WeightsTile>,
        format: ElementFormat,
    ) -> Result<Self> {
        shape.check_config(config)?;
        let tensor = RowLayout::of_activations(config, format, caps);
        let [state, row_stats] = [
            RowLayout::of_state(config, caps),
            RowLayout::of_row_stats(config, caps),
        ];
        let layouts = [
            ("q", tensor),
            ("softmax_state", state),
            ("row statistics", row_stats),
        ];
        let mut max_rows = u64::MAX;
        for (what, layout) in layouts {
            max_rows = max_rows.min(layout.max_rows(caps));
            if max_rows == 0 {
                return Err(Error::BindingTooSmall {
                    what: what.into(),
                    requested_bytes: layout.row_bytes + caps.storage_offset_alignment,
                    limit_bytes: caps.max_binding_bytes,
                });
            }
        }
        Ok(Self {
            config,
            shape,
            caps,
            rounds,
            weights,
            tensor,
            state,
            row_stats,
            max_rows,
            held: None,
            dispatches: Vec::new(),
        })
    }

    /// All dispatches, in order.
    pub fn plan(mut self) -> Result<Vec<AttentionDispatch>> {
        for (items, valid_len, valid_key_len) in runs_of_equal_length(self.shape) {
            if valid_len > 0 {
                self.plan_items(items, valid_len, valid_key_len)?;
            }
        }
        Ok(self.dispatches)
    }

    /// Plans all branches over items that all have `valid_len` tokens and `valid_key_len` keys.
    fn plan_items(&mut self, items: Range, valid_len: u32, valid_key_len: u32) -> Result<()> {
        let geometries = self.geometries(valid_len, valid_key_len);
        let every_branch = self.config.heads() == Heads::EveryBranch;
        for stages in self.rounds {
            for (order, geometry) in geometries.iter().enumerate() {
                for passes in stages {
                    let work = Work {
                        geometry,
                        passes,
                        follows: every_branch && order > 0,
                        sweeps_all: self.config.gradient() == MixGradient::Exact,
                        adds: false,
                    };
                    self.plan_branch(&work, items)?;
                }
            }
        }
        Ok(())
    }

    /// The branches over items of `valid_len` tokens and `valid_key_len` keys, in the order in which they are computed.
    fn geometries(&self, valid_len: u32, valid_key_len: u32) -> Vec<BranchGeometry> {
        let mut geometries: Vec<BranchGeometry> = (0..self.config.branches().len() as u32)
            .map(|branch| BranchGeometry::cross(self.config, branch, valid_len, valid_key_len))
            .filter(|geometry| geometry.head_count > 0)
            .collect();
        // A branch that covers everything comes first. The sort is stable: the others keep their order.
        geometries
            .sort_by_key(|geometry| !geometry.covers_everything(in_u32(self.config.num_heads())));
        geometries
    }

    fn plan_branch(&mut self, work: &Work<'_>, items: Range) -> Result<()> {
        let geometry = work.geometry;
        let max_rows = self.max_rows;
        let heads = Range {
            begin: geometry.head_begin,
            end: geometry.head_begin + geometry.head_count,
        };
        // The outputs of later segments would lie after the end of the sequence.
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
            rows: rows_up_to(geometry, geometry.seq_len),
            key_rows: rows_up_to(geometry, geometry.key_len),
            keys: KeySource::Tokens,
        };
        let longest = self.shape.seq_len().max(self.shape.key_len());
        let items_per_window = (max_rows / longest as u64) as u32;
        let is_undivided = |items| self.is_undivided(geometry, &Unit { items, ..unit });
        for (items, is_undivided) in runs(items, is_undivided) {
            if items_per_window > 0 && is_undivided {
                for items in chunks(items, items_per_window) {
                    self.push(work, Unit { items, ..unit })?;
                }
                continue;
            }
            for items in chunks(items, 1) {
                self.plan_item(work, Unit { items, ..unit })?;
            }
        }
        Ok(())
    }

    /// Plans one item that is too large for a binding, or lies in several parts.
    fn plan_item(&mut self, work: &Work<'_>, unit: Unit) -> Result<()> {
        let geometry = work.geometry;
        let segment_tokens = geometry.segment_length.max(geometry.output_stride);
        let segments_per_window = (self.max_rows / u64::from(segment_tokens)) as u32;
        let is_undivided = |segments| self.is_undivided(geometry, &Unit { segments, ..unit });
        for (segments, is_undivided) in runs(unit.segments, is_undivided) {
            if segments_per_window > 0 && is_undivided {
                for segments in chunks(segments, segments_per_window) {
                    self.push(work, Unit { segments, ..unit })?;
                }
                continue;
            }
            for segments in chunks(segments, 1) {
                self.plan_segment(work, Unit { segments, ..unit })?;
            }
        }
        Ok(())
    }

    /// Whether each tensor holds the tokens of a unit in one part.
    fn is_undivided(&self, geometry: &BranchGeometry, unit: &Unit) -> bool {
        self.has_rows_in_one_part(geometry, unit) && self.has_keys_in_one_part(geometry, unit)
    }

    /// Whether the queries, outputs and statistics of a unit's rows lie in one part each.
    fn has_rows_in_one_part(&self, geometry: &BranchGeometry, unit: &Unit) -> bool {
        let (len, held) = (geometry.seq_len, self.held.unwrap_or_default());
        let span = |stride, first| {
            let tokens = token_span(geometry, unit, unit.rows, stride, len);
            tokens.map(|(begin, end)| (begin - first, end - first))
        };
        let of_queries = span(geometry.segment_length, held.queries);
        let of_outputs = span(geometry.output_stride, held.outputs);
        let in_one = |layout: &RowLayout, tokens: Option<(u64, u64)>| {
            tokens.is_none_or(|tokens| {
                let (first, last) = rows_of(unit, tokens, self.shape.seq_len());
                layout.is_in_one_part(first, last)
            })
        };
        in_one(&self.tensor, of_queries)
            && [&self.tensor, &self.state, &self.row_stats]
                .iter()
                .all(|layout| in_one(layout, of_outputs))
    }

    /// Whether the keys of a unit lie in one part.
    fn has_keys_in_one_part(&self, geometry: &BranchGeometry, unit: &Unit) -> bool {
        let (stride, len) = (geometry.segment_length, geometry.key_len);
        let held = self.held.unwrap_or_default().keys;
        // Without keys the first token is bound.
        let tokens = token_span(geometry, unit, unit.key_rows, stride, len);
        let (begin, end) = tokens.unwrap_or((held, held + 1));
        let (first, last) = rows_of(unit, (begin - held, end - held), self.shape.key_len());
        self.tensor.is_in_one_part(first, last)
    }

    /// Cuts a segment's rows where a part ends: units of all heads, or of one row and some heads. `is_undivided` says whether the
    /// rows of a unit lie in one part.
    fn cut_rows(
        unit: Unit,
        rows: Range,
        is_undivided: impl Fn(Range, Range) -> bool,
    ) -> Vec<(Range, Range)> {
        let mut cut = Vec::new();
        for (rows, whole) in runs(rows, |rows| is_undivided(unit.heads, rows)) {
            if whole {
                cut.push((unit.heads, rows));
                continue;
            }
            // A head has one token in a row, which is in one part.
            let of_heads = runs(unit.heads, |heads| is_undivided(heads, rows));
            cut.extend(of_heads.into_iter().map(|(heads, _)| (heads, rows)));
        }
        cut
    }

    /// Plans one segment of one item that is too large for a binding, or lies in several parts: windows of rows x windows of keys.
    fn plan_segment(&mut self, work: &Work<'_>, unit: Unit) -> Result<()> {
        let geometry = work.geometry;
        let max_rows = self.max_rows;
        let rate = u64::from(geometry.dilation_rate);
        // A window of R rows spans R * r tokens over all heads' offsets. If that is too much for one row, take one head's: a token.
        let (heads_per_window, rows_per_window) = match max_rows / rate {
            0 => (1, 1),
            rows => (unit.heads.len(), rows),
        };
        let rows_per_window = rows_per_window.min(u64::from(u32::MAX)) as u32;
        // The outputs of heads with larger offsets may all lie after the end of the sequence.
        let has_output = |head| geometry.written_rows(unit.segments.begin, head) > 0;
        let have_outputs = |heads: Range| (heads.begin..heads.end).all(has_output);
        let heads = runs(unit.heads, have_outputs).into_iter();
        let heads = heads.filter_map(|(heads, have_outputs)| have_outputs.then_some(heads));
        for heads in heads.flat_map(|heads| chunks(heads, heads_per_window)) {
            let unit = Unit { heads, ..unit };
            // At rate 1, all heads have the same keys.
            let in_one = |key_rows| self.has_keys_in_one_part(geometry, &Unit { key_rows, ..unit });
            let windows: Vec<Range> = runs(unit.key_rows, in_one)
                .into_iter()
                .flat_map(|(key_rows, _)| chunks(key_rows, rows_per_window))
                .collect();
            let packed = unit.key_rows.len().div_ceil(self.packed_rows(unit.heads));
            // Keys of rate 1 are as close as packed ones. But in many short parts a binding does not reach them.
            let are_scattered = windows.len() > 2 * packed as usize && !in_one(unit.key_rows);
            if rate > 1 || are_scattered {
                self.plan_packed(work, unit, rows_per_window)?;
                continue;
            }
            for part in self.row_windows(geometry, unit, rows_per_window) {
                for &key_rows in &windows {
                    let part = Unit { key_rows, ..part };
                    if part.has_pairs(geometry) {
                        self.push(work, part)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// The unit in windows of rows that lie in one part, of at most `rows_per_window`.
    fn row_windows(
        &self,
        geometry: &BranchGeometry,
        unit: Unit,
        rows_per_window: u32,
    ) -> Vec<Unit> {
        let in_one = |heads, rows| {
            let part = Unit {
                heads,
                rows,
                ..unit
            };
            self.has_rows_in_one_part(geometry, &part)
        };
        let cut = Self::cut_rows(unit, unit.rows, in_one);
        let windows = cut.into_iter().flat_map(|(heads, rows)| {
            chunks(rows, rows_per_window).map(move |rows| Unit {
                heads,
                rows,
                ..unit
            })
        });
        windows.collect()
    }

    /// Plans one segment of one item, whose keys are packed a window after the other. Of a window of rows,
    /// `rows_per_window` are covered by a binding.
    fn plan_packed(&mut self, work: &Work<'_>, unit: Unit, rows_per_window: u32) -> Result<()> {
        let geometry = work.geometry;
        let packed_rows = self.packed_rows(unit.heads);
        let has_gradients = work.passes.iter().any(|planned| planned.pass.is_of_keys());
        let windows = self.row_windows(geometry, unit, rows_per_window);
        for key_rows in chunks(unit.key_rows, packed_rows) {
            let seen = windows
                .iter()
                .map(|part| Unit { key_rows, ..*part })
                .filter(|part| part.has_pairs(geometry))
                .collect::<Vec<_>>();
            let stride = geometry.segment_length;
            let tokens = token_span(geometry, &unit, key_rows, stride, geometry.key_len);
            if seen.is_empty() || tokens.is_none() {
                // Nothing to pack. Rows may still see zero keys.
                for part in seen {
                    self.push(work, part)?;
                }
                continue;
            }
            let packed = Unit {
                key_rows,
                keys: KeySource::Packed {
                    heads: unit.heads,
                    rows: key_rows,
                },
                ..unit
            };
            self.push_packing(work, Pass::PackKeys, packed, rows_per_window)?;
            if has_gradients && (work.follows || work.adds) {
                self.push_packing(work, Pass::PackGradients, packed, rows_per_window)?;
            }
            let before = self.dispatches.len();
            for part in seen {
                self.push(
                    work,
                    Unit {
                        keys: packed.keys,
                        ..part
                    },
                )?;
            }
            // Where no row has an output, no gradient was computed.
            let mut pushed = self.dispatches[before..].iter();
            if pushed.any(|dispatch| dispatch.pass.is_of_keys()) {
                self.push_packing(work, Pass::UnpackGradients, packed, rows_per_window)?;
            }
        }
        Ok(())
    }

    /// Rows of packed keys of `heads` that a binding covers.
    fn packed_rows(&self, heads: Range) -> u32 {
        let head_bytes = self.tensor.row_bytes / self.config.num_heads() as u64;
        let row_bytes = head_bytes * u64::from(heads.len());
        let most_bytes = self.caps.max_binding_bytes.min(self.caps.max_buffer_bytes);
        let rows = most_bytes / row_bytes;
        u32::try_from(rows).unwrap_or(u32::MAX).max(1)
    }

    /// Plans the copies of `pass` between the packed keys of `unit` and their tokens, of which a binding covers
    /// `rows_per_window` rows.
    fn push_packing(
        &mut self,
        work: &Work<'_>,
        pass: Pass,
        unit: Unit,
        rows_per_window: u32,
    ) -> Result<()> {
        let geometry = work.geometry;
        let in_one = |heads, key_rows| {
            let part = Unit {
                heads,
                key_rows,
                ..unit
            };
            self.has_keys_in_one_part(geometry, &part)
        };
        let cut = Self::cut_rows(unit, unit.key_rows, in_one);
        let windows = cut.into_iter().flat_map(|(heads, key_rows)| {
            chunks(key_rows, rows_per_window).map(move |key_rows| (heads, key_rows))
        });
        for (heads, key_rows) in windows.collect::<Vec<_>>() {
            let unit = Unit {
                heads,
                key_rows,
                ..unit
            };
            let stride = geometry.segment_length;
            let Some(tokens) = token_span(geometry, &unit, key_rows, stride, geometry.key_len)
            else {
                continue;
            };
            let held = self.held.unwrap_or_default().keys;
            let in_tensor = (tokens.0 - held, tokens.1 - held);
            let of_tokens =
                self.window("k", &self.tensor, &unit, in_tensor, self.shape.key_len())?;
            let tiles = key_rows.len().div_ceil(PackKeys::KEYS);
            let (num_workgroups, grid) = self.grid(&unit, tiles, 1)?;
            self.add(AttentionDispatch {
                pass,
                geometry: geometry.clone(),
                items: unit.items,
                heads: unit.heads,
                segments: unit.segments,
                rows: unit.rows,
                key_rows,
                merges: false,
                q: of_tokens,
                keys: unit.keys,
                kv: self.packed_window(&unit.keys),
                // Not bound.
                out: of_tokens,
                state: of_tokens,
                row_stats: of_tokens,
                // Tokens are below 2^31.
                first_tokens: [tokens.0 as u32; 3],
                num_workgroups,
                grid,
            })?;
        }
        Ok(())
    }

    /// Plans a unit that one binding of each tensor covers.
    fn push(&mut self, work: &Work<'_>, unit: Unit) -> Result<()> {
        let keeps_weights = work.passes.iter().any(|pass| pass.pass == Pass::Weights);
        let Some(tile) = self.weights.filter(|_| keeps_weights) else {
            return self.push_passes(work, unit);
        };
        let side = tile.window_side(self.caps);
        let [rows, key_rows] =
            [unit.rows, unit.key_rows].map(|range| chunks(range, side).collect::<Vec<_>>());
        let longest = |ranges: &[Range]| ranges.iter().map(|range| range.len()).max().unwrap_or(0);
        let bytes = tile.weights_bytes(longest(&rows), longest(&key_rows));
        // At least 1, because the weights of one window fit.
        let at_once = (WeightsTile::most_bytes(self.caps) / bytes.max(1)).max(1);
        let at_once = u32::try_from(at_once).unwrap_or(u32::MAX);
        let heads_at_once = at_once.min(unit.heads.len()).max(1);
        let segments_at_once = (at_once / heads_at_once).min(unit.segments.len()).max(1);
        let items_at_once = (at_once / heads_at_once / segments_at_once).max(1);
        for items in chunks(unit.items, items_at_once) {
            for segments in chunks(unit.segments, segments_at_once) {
                for heads in chunks(unit.heads, heads_at_once) {
                    for &rows in &rows {
                        for &key_rows in &key_rows {
                            let part = Unit {
                                items,
                                heads,
                                segments,
                                rows,
                                key_rows,
                                keys: unit.keys,
                            };
                            if part.has_pairs(work.geometry) {
                                self.push_passes(work, part)?;
                            }
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn push_passes(&mut self, work: &Work<'_>, unit: Unit) -> Result<()> {
        for pass in work.passes {
            self.push_pass(work, *pass, unit)?;
        }
        Ok(())
    }

    /// Adds a dispatch.
    ///
    /// # Errors
    /// [`Error::TooManyDispatches`] when a buffer does not hold the parameters of all.
    fn add(&mut self, dispatch: AttentionDispatch) -> Result<()> {
        let limit = self.caps.max_buffer_bytes / self.caps.uniform_offset_alignment;
        if self.dispatches.len() as u64 >= limit {
            return Err(Error::TooManyDispatches { limit });
        }
        self.dispatches.push(dispatch);
        Ok(())
    }

    fn push_pass(&mut self, work: &Work<'_>, planned: PlannedPass, unit: Unit) -> Result<()> {
        let (geometry, pass) = (work.geometry, planned.pass);
        // The output tokens of all rows may lie after the end of the sequence: then there is nothing to write.
        let out_tokens = token_span(
            geometry,
            &unit,
            unit.rows,
            geometry.output_stride,
            geometry.seq_len,
        );
        let Some(out_tokens) = out_tokens else {
            return Ok(());
        };
        let stride = geometry.segment_length;
        // If all rows are phantom rows, no query is read, and any binding will do.
        let any_query = match self.held {
            None => out_tokens,
            Some(held) => (held.queries, held.queries + 1),
        };
        let held = self.held.unwrap_or_default();
        let q_tokens =
            token_span(geometry, &unit, unit.rows, stride, geometry.seq_len).unwrap_or(any_query);
        let kv_tokens = token_span(geometry, &unit, unit.key_rows, stride, geometry.key_len);
        let kv_tokens = match (kv_tokens, pass) {
            (Some(tokens), _) => tokens,
            (None, pass) if pass.is_of_keys() => return Ok(()),
            // Even without keys the dispatch is needed, for zero keys and for the state of rows without a key. It binds the first
            // token but reads no key.
            (None, _) if unit.key_rows.begin == 0 => (held.keys, held.keys + 1),
            (None, _) => return Ok(()),
        };
        let [row_tiles, key_tiles] =
            [unit.rows, unit.key_rows].map(|range| range.len().div_ceil(planned.tile));
        let tiles = match pass {
            Pass::Forward | Pass::BranchDelta | Pass::Dq => row_tiles,
            // A workgroup takes a tile of rows x a tile of keys.
            Pass::Weights => row_tiles * key_tiles,
            _ => key_tiles,
        };
        let (num_workgroups, grid) = self.grid(&unit, tiles, planned.columns)?;
        let window = |what, layout, (begin, end): (u64, u64), len, first| {
            self.window(what, layout, &unit, (begin - first, end - first), len)
        };
        let [seq_len, key_len] = [self.shape.seq_len(), self.shape.key_len()];
        let kv = match unit.keys {
            KeySource::Tokens => window("k", &self.tensor, kv_tokens, key_len, held.keys)?,
            packed @ KeySource::Packed { .. } => self.packed_window(&packed),
        };
        let dispatch = AttentionDispatch {
            pass,
            geometry: geometry.clone(),
            items: unit.items,
            heads: unit.heads,
            segments: unit.segments,
            rows: unit.rows,
            key_rows: unit.key_rows,
            merges: work.merges(pass, &unit),
            q: window("q", &self.tensor, q_tokens, seq_len, held.queries)?,
            keys: unit.keys,
            kv,
            out: window("out", &self.tensor, out_tokens, seq_len, held.outputs)?,
            state: window(
                "softmax_state",
                &self.state,
                out_tokens,
                seq_len,
                held.outputs,
            )?,
            row_stats: window(
                "row statistics",
                &self.row_stats,
                out_tokens,
                seq_len,
                held.outputs,
            )?,
            // Tokens are below 2^31.
            first_tokens: [q_tokens.0, kv_tokens.0, out_tokens.0].map(|token| token as u32),
            num_workgroups,
            grid,
        };
        self.add(dispatch)
    }

    /// The window of a tensor of `len` tokens an item that shows `tokens` of the unit's items.
    fn window(
        &self,
        what: &'static str,
        layout: &RowLayout,
        unit: &Unit,
        tokens: (u64, u64),
        len: usize,
    ) -> Result<TokenWindow> {
        let (first, last) = rows_of(unit, tokens, len);
        layout
            .window(first, last, self.caps)
            .ok_or(Error::BindingTooSmall {
                what: what.into(),
                requested_bytes: (last - first) * layout.row_bytes,
                limit_bytes: self.caps.max_binding_bytes,
            })
    }

    /// All of the packed keys.
    fn packed_window(&self, keys: &KeySource) -> TokenWindow {
        let rows = match keys {
            KeySource::Tokens => 0,
            KeySource::Packed { heads, rows } => u64::from(heads.len()) * u64::from(rows.len()),
        };
        let size = rows * (self.tensor.row_bytes / self.config.num_heads() as u64);
        TokenWindow {
            bytes: ByteRange { offset: 0, size },
            skip: 0,
        }
    }

    /// Number and grid of the workgroups that compute `tiles` of each head, segment and item of a unit, each in `columns` parts.
    fn grid(&self, unit: &Unit, tiles: u32, columns: u32) -> Result<(u32, [u32; 2])> {
        let factors = [unit.items, unit.segments, unit.heads].map(Range::len);
        let num_workgroups = [columns]
            .iter()
            .chain(&factors)
            .try_fold(tiles, |product, factor| product.checked_mul(*factor));
        let grid = num_workgroups
            .and_then(|n| Some((n, fold_grid(n, self.caps.max_workgroups_per_dimension)?)));
        grid.ok_or_else(|| Error::SizeOverflow {
            what: "workgroups of one dispatch".into(),
            given: format!(
                "{} items, {} segments, {} heads, {tiles} tiles",
                unit.items.len(),
                unit.segments.len(),
                unit.heads.len()
            ),
        })
    }
}

/// The first tokens of the tensors that are bound.
#[derive(Clone, Copy, Default)]
pub(super) struct Held {
    pub queries: u64,
    pub keys: u64,
    pub outputs: u64,
}

/// Stages that are computed of each whole branch, one after the other.
pub(super) type Round = Vec<Stage>;

/// Passes that follow each other over each part of a branch.
pub(super) type Stage = Vec<PlannedPass>;

/// A pass, and how its kernel divides the work among workgroups.
#[derive(Clone, Copy)]
pub(super) struct PlannedPass {
    pub pass: Pass,
    /// Rows (or keys) of a workgroup.
    pub tile: u32,
    /// Number of workgroups that the columns of such a tile are divided among.
    pub columns: u32,
}

/// One stage of one branch.
struct Work<'a> {
    geometry: &'a BranchGeometry,
    passes: &'a [PlannedPass],
    /// Whether another branch has written the result before.
    follows: bool,
    /// Whether the sweep's sums are over all branches.
    sweeps_all: bool,
    /// Whether gradients are added to what was there before: zeros, or what other parts of the work have left.
    adds: bool,
}

impl Work<'_> {
    /// Whether the dispatch of `unit` merges with results that an earlier dispatch has written.
    fn merges(&self, pass: Pass, unit: &Unit) -> bool {
        let later_keys = unit.key_rows.begin > 0;
        // Under the causal mask, the first rows that see a window of keys are the rows at the same places.
        let first_rows = if self.geometry.causal {
            unit.key_rows.begin
        } else {
            0
        };
        match pass {
            Pass::Forward => self.follows || later_keys,
            Pass::Dq => self.adds || self.follows || later_keys,
            Pass::BranchDelta => self.follows && self.sweeps_all || later_keys,
            // The weights of a window replace those of the last one.
            Pass::Weights => false,
            Pass::DkDv | Pass::Dk | Pass::Dv => {
                self.adds || self.follows || unit.rows.begin > first_rows
            }
            Pass::PackKeys | Pass::PackGradients | Pass::UnpackGradients => false,
        }
    }
}

/// Runs of neighbouring batch items with equal numbers of valid tokens and keys: (items, tokens, keys).
fn runs_of_equal_length(shape: &AttentionShape) -> Vec<(Range, u32, u32)> {
    let mut runs: Vec<(Range, u32, u32)> = Vec::new();
    for (item, number) in (0..shape.batch()).zip(0..) {
        let lens = (
            in_u32(shape.valid_len(item)),
            in_u32(shape.valid_key_len(item)),
        );
        match runs.last_mut() {
            Some((items, len, key_len)) if (*len, *key_len) == lens => items.end = number + 1,
            _ => {
                let items = Range {
                    begin: number,
                    end: number + 1,
                };
                runs.push((items, lens.0, lens.1));
            }
        }
    }
    runs
}

/// The rows of a segment that can exist in a sequence of `len` tokens.
fn rows_up_to(geometry: &BranchGeometry, len: u32) -> Range {
    // Only a sequence that is shorter than the other one of a cross attention has fewer rows; phantom rows always count.
    let longest = geometry.seq_len.max(geometry.key_len);
    let end = if len < longest {
        geometry
            .segment_length
            .min(len)
            .div_ceil(geometry.dilation_rate)
    } else {
        geometry.rows_per_segment
    };
    Range { begin: 0, end }
}

/// The part of a branch that one dispatch computes.
#[derive(Clone, Copy)]
struct Unit {
    items: Range,
    heads: Range,
    segments: Range,
    rows: Range,
    key_rows: Range,
    keys: KeySource,
}

impl Unit {
    /// Whether a row sees a key, as far as the mask tells.
    fn has_pairs(&self, geometry: &BranchGeometry) -> bool {
        !geometry.causal || self.key_rows.begin < self.rows.end
    }
}

/// The rows of a tensor of `len` tokens an item that hold `tokens` of a unit's items.
fn rows_of(unit: &Unit, tokens: (u64, u64), len: usize) -> (u64, u64) {
    let len = len as u64;
    (
        u64::from(unit.items.begin) * len + tokens.0,
        u64::from(unit.items.end - 1) * len + tokens.1,
    )
}

/// Range of tokens that rows `rows` of the unit's segments and heads use, in a sequence of `len` tokens whose segments begin
/// `stride` tokens apart. `None` if none of them exists.
fn token_span(
    geometry: &BranchGeometry,
    unit: &Unit,
    rows: Range,
    stride: u32,
    len: u32,
) -> Option<(u64, u64)> {
    let offsets = (unit.heads.begin..unit.heads.end).map(|head| geometry.offset(head));
    let (first_offset, last_offset) = (offsets.clone().min()?, offsets.max()?);
    let (stride, rate) = (u64::from(stride), u64::from(geometry.dilation_rate));
    let begin = u64::from(unit.segments.begin) * stride
        + u64::from(rows.begin) * rate
        + u64::from(first_offset);
    let end = (u64::from(unit.segments.end) - 1) * stride
        + u64::from(rows.end.checked_sub(1)?) * rate
        + u64::from(last_offset)
        + 1;
    let end = end
        .min(u64::from(unit.segments.end) * stride)
        .min(u64::from(len));
    (begin < end).then_some((begin, end))
}

/// Cuts `range` into runs for which `holds`, each as long as possible; an index for which it does not hold is a run of its own. If it
/// holds for a run, it holds for every part of it. An empty range is one run.
fn runs(range: Range, holds: impl Fn(Range) -> bool) -> Vec<(Range, bool)> {
    let mut runs = Vec::new();
    let mut begin = range.begin;
    while begin < range.end || runs.is_empty() {
        let up_to = |end| Range { begin, end };
        if holds(up_to(range.end)) {
            runs.push((up_to(range.end), true));
            break;
        }
        // It holds up to `good`, but not up to `bad`.
        let (mut good, mut bad) = (begin, range.end);
        while bad - good > 1 {
            let middle = good + (bad - good) / 2;
            match holds(up_to(middle)) {
                true => good = middle,
                false => bad = middle,
            }
        }
        let end = good.max(begin + 1);
        runs.push((up_to(end), good > begin));
        begin = end;
    }
    runs
}

/// Cuts `range` into as few pieces of at most `size >= 1` as possible, all of nearly the same size. An empty range is one piece.
fn chunks(range: Range, size: u32) -> impl Iterator<Item = Range> {
    let pieces = range.len().div_ceil(size).max(1);
    let step = range.len().div_ceil(pieces).max(1);
    (range.begin..range.end.max(range.begin + 1))
        .step_by(step as usize)
        .map(move |begin| Range {
            begin,
            end: range.end.min(begin.saturating_add(step)),
        })
}
