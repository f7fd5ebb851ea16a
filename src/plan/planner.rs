//! Cuts a forward into dispatches that bindings can cover.
//!
//! ```text
//! for each run of batch items of equal length, for each branch (one that covers every token first):
//!   items together     while one binding covers them whole
//!   else segments      of one item, as many as a binding covers
//!   else rows          of one segment: (query rows) x (key rows), joined by the same merge that joins branches
//! ```

use super::branch::BranchGeometry;
use super::facts::DeviceFacts;
use super::forward::{ForwardDispatch, Range};
use super::window::RowLayout;
use crate::config::{DilatedAttentionConfig, Heads};
use crate::error::{Error, Result};
use crate::kernel::fold_grid;
use crate::kernel::forward::ForwardVariant;

pub(super) struct Planner<'a> {
    pub config: &'a DilatedAttentionConfig,
    pub facts: &'a DeviceFacts,
    pub seq_len: u32,
    pub variant: ForwardVariant,
    pub tensor: RowLayout,
    pub lse: RowLayout,
    pub dispatches: Vec<ForwardDispatch>,
}

impl Planner<'_> {
    /// All branches over items that have `valid_len` tokens each.
    pub fn plan_items(&mut self, items: Range, valid_len: u32) -> Result<()> {
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
