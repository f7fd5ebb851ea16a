//! The plan of one block of outputs, of a sequence that the device does not hold as a whole.
//!
//! ```text
//! for each branch (one that covers every token comes first)
//!   of short segments    keys and values where their tokens lie, of all segments with an output in the block
//!   of long segments     for each of these segments, for each window of keys in order: packed keys or, at rate 1, tokens
//! ```
//! So of each output row the windows come in the order of an ordinary plan: branch after branch, keys ascending.

use super::{Held, PlannedPass, Planner, Range, Unit, Work, chunks, runs, token_span};
use crate::config::{Heads, MixGradient, in_u32};
use crate::error::Result;
use crate::plan::branch::BranchGeometry;
use crate::plan::dispatch::{AttentionDispatch, KeySource};

/// A range of tokens.
pub(crate) type Tokens = std::ops::Range<u64>;

/// How much a block and its tensors hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct BlockSize {
    /// Outputs of a block.
    pub tokens: u64,
    /// Tokens of the largest tensor of queries, keys or values.
    pub held_tokens: u64,
}

impl BlockSize {
    /// Blocks of `tokens` outputs of a sequence with these branches.
    pub fn new(tokens: u64, geometries: &[BranchGeometry]) -> Self {
        let seq_len = geometries.first().map_or(0, |geometry| geometry.seq_len);
        let offsets = geometries.iter().flat_map(|geometry| {
            let heads = all_heads(geometry);
            (heads.begin..heads.end).map(|head| u64::from(geometry.offset(head)))
        });
        // The rows of all heads with an output in a block span at most the block and the heads' offsets.
        let rows = tokens + offsets.max().unwrap_or(0);
        Self {
            tokens,
            held_tokens: (2 * tokens).max(rows).min(seq_len.into()).max(1),
        }
    }

    /// Whether segments of a branch are read where their tokens lie.
    pub fn is_short(&self, geometry: &BranchGeometry) -> bool {
        // All segments with an output in a block: those inside, and one more at an end.
        let stride = u64::from(geometry.output_stride);
        let segments = (self.tokens.div_ceil(stride) + 1).min(geometry.num_segments.into());
        let tokens = segments * u64::from(geometry.segment_length);
        tokens.min(geometry.key_len.into()) <= self.held_tokens
    }
}

/// Where the keys of some dispatches lie.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum BlockKeys {
    /// Among these tokens.
    Tokens(Tokens),
    /// Packed: rows of a segment of a branch, of all its heads.
    Packed {
        branch: u32,
        segment: u32,
        rows: Range,
    },
}

/// Dispatches over the same tensors of queries and keys.
#[derive(Clone, Debug)]
pub(crate) struct BlockWork {
    pub queries: Tokens,
    pub keys: BlockKeys,
    pub dispatches: Vec<AttentionDispatch>,
}

/// The plan of a block: all works, in order.
#[derive(Clone, Debug)]
pub(crate) struct BlockPlan {
    /// Whether outputs and states are set to 0 first.
    pub clears: bool,
    pub works: Vec<BlockWork>,
}

impl Planner<'_> {
    /// Plans the outputs of the tokens `outputs` of the shape's only item.
    pub fn plan_block(mut self, outputs: Tokens, size: BlockSize) -> Result<BlockPlan> {
        // What a block binds lies in one buffer each.
        for layout in [&mut self.tensor, &mut self.state, &mut self.row_stats] {
            layout.part_bytes = u64::MAX;
        }
        let (config, seq_len) = (self.config, in_u32(self.shape.seq_len()));
        let geometries = self.geometries(seq_len, seq_len);
        let every_branch = config.heads() == Heads::EveryBranch;
        let passes: Vec<PlannedPass> = self.rounds.concat().concat();
        let mut works = Vec::new();
        for (order, geometry) in geometries.iter().enumerate() {
            let work = Work {
                geometry,
                passes: &passes,
                follows: every_branch && order > 0,
                sweeps_all: config.gradient() == MixGradient::Exact,
                adds: false,
            };
            let segments = segments_of(geometry, &outputs);
            if segments.len() == 0 {
                continue;
            }
            if size.is_short(geometry) {
                works.extend(self.plan_short(&work, segments, &outputs)?);
                continue;
            }
            for segment in segments.begin..segments.end {
                works.extend(self.plan_long(&work, segment, &outputs, size)?);
            }
        }
        let rate_one =
            |geometry: &BranchGeometry| geometry.covers_everything(in_u32(config.num_heads()));
        Ok(BlockPlan {
            clears: !geometries.first().is_some_and(rate_one),
            works,
        })
    }

    /// All segments at once; those that end outside of the block by the rows that lie inside.
    fn plan_short(
        &mut self,
        work: &Work<'_>,
        segments: Range,
        outputs: &Tokens,
    ) -> Result<Option<BlockWork>> {
        let geometry = work.geometry;
        let whole = |segments: Range| {
            let unit = all_rows(geometry, segments);
            is_inside(geometry, &unit, outputs)
        };
        let mut units = Vec::new();
        for (segments, is_whole) in runs(segments, whole) {
            match is_whole {
                true => units.push(all_rows(geometry, segments)),
                false => units.extend(rows_inside(geometry, segments.begin, outputs)),
            }
        }
        let segment_length = u64::from(geometry.segment_length);
        let first = u64::from(segments.begin) * segment_length;
        let end = u64::from(segments.end) * segment_length;
        let keys = first..end.min(geometry.key_len.into());
        self.record(work, units, BlockKeys::Tokens(keys), outputs)
            .map(|mut works| works.pop())
    }

    /// One segment, in windows of keys.
    fn plan_long(
        &mut self,
        work: &Work<'_>,
        segment: u32,
        outputs: &Tokens,
        size: BlockSize,
    ) -> Result<Vec<BlockWork>> {
        let geometry = work.geometry;
        let units = rows_inside(geometry, segment, outputs);
        let rows = u32::try_from(size.held_tokens).unwrap_or(u32::MAX);
        let key_rows = Range {
            begin: 0,
            end: geometry.rows_per_segment,
        };
        let mut works = Vec::new();
        for key_rows in chunks(key_rows, rows) {
            let of_window = |unit: &Unit| Unit { key_rows, ..*unit };
            let seen = units.iter().map(of_window);
            let seen = seen.filter(|unit| unit.has_pairs(geometry)).collect();
            let keys = match geometry.dilation_rate {
                1 => {
                    let first = u64::from(segment) * u64::from(geometry.segment_length);
                    let len = u64::from(geometry.key_len);
                    let place = |row: u32| (first + u64::from(row)).min(len);
                    BlockKeys::Tokens(place(key_rows.begin)..place(key_rows.end))
                }
                _ => BlockKeys::Packed {
                    branch: geometry.branch,
                    segment,
                    rows: key_rows,
                },
            };
            works.extend(self.record(work, seen, keys, outputs)?);
        }
        Ok(works)
    }

    /// The dispatches of `units`, whose keys are `keys`. None if there are no dispatches.
    fn record(
        &mut self,
        work: &Work<'_>,
        units: Vec<Unit>,
        keys: BlockKeys,
        outputs: &Tokens,
    ) -> Result<Vec<BlockWork>> {
        let geometry = work.geometry;
        let queries = units.iter().filter_map(|unit| {
            let stride = geometry.segment_length;
            token_span(geometry, unit, unit.rows, stride, geometry.seq_len)
        });
        // Rows that are padding read no query, but something is bound.
        let queries = queries.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)));
        let queries = queries.unwrap_or((0, 1));
        let source = match &keys {
            BlockKeys::Tokens(_) => KeySource::Tokens,
            BlockKeys::Packed { rows, .. } => KeySource::Packed {
                heads: all_heads(geometry),
                rows: *rows,
            },
        };
        self.held = Some(Held {
            queries: queries.0,
            keys: match &keys {
                BlockKeys::Tokens(tokens) => tokens.start,
                BlockKeys::Packed { .. } => 0,
            },
            outputs: outputs.start,
        });
        for unit in units {
            self.push(
                work,
                Unit {
                    keys: source,
                    ..unit
                },
            )?;
        }
        let dispatches = std::mem::take(&mut self.dispatches);
        Ok(match dispatches.is_empty() {
            true => Vec::new(),
            false => vec![BlockWork {
                queries: queries.0..queries.1,
                keys,
                dispatches,
            }],
        })
    }
}

pub(super) fn all_heads(geometry: &BranchGeometry) -> Range {
    Range {
        begin: geometry.head_begin,
        end: geometry.head_begin + geometry.head_count,
    }
}

/// All rows and heads of some segments.
fn all_rows(geometry: &BranchGeometry, segments: Range) -> Unit {
    let rows = Range {
        begin: 0,
        end: geometry.rows_per_segment,
    };
    Unit {
        items: Range { begin: 0, end: 1 },
        heads: all_heads(geometry),
        segments,
        rows,
        key_rows: rows,
        keys: KeySource::Tokens,
    }
}

/// The segments with an output among `outputs`.
pub(crate) fn segments_of(geometry: &BranchGeometry, outputs: &Tokens) -> Range {
    let stride = u64::from(geometry.output_stride);
    let begin = (outputs.start / stride).min(geometry.num_segments.into());
    let end = outputs
        .end
        .div_ceil(stride)
        .min(geometry.num_segments.into());
    Range {
        // At most the number of segments.
        begin: begin as u32,
        end: end.max(begin) as u32,
    }
}

/// Whether all outputs of a unit are among `outputs`.
fn is_inside(geometry: &BranchGeometry, unit: &Unit, outputs: &Tokens) -> bool {
    let (stride, len) = (geometry.output_stride, geometry.seq_len);
    let span = token_span(geometry, unit, unit.rows, stride, len);
    span.is_none_or(|(begin, end)| outputs.start <= begin && end <= outputs.end)
}

/// The rows of a segment whose outputs are among `outputs`, cut so that each unit has all its outputs there.
pub(super) fn rows_inside(geometry: &BranchGeometry, segment: u32, outputs: &Tokens) -> Vec<Unit> {
    let unit = all_rows(
        geometry,
        Range {
            begin: segment,
            end: segment + 1,
        },
    );
    let offsets = (unit.heads.begin..unit.heads.end).map(|head| geometry.offset(head));
    let largest = u64::from(offsets.max().unwrap_or(0));
    let first = u64::from(segment) * u64::from(geometry.output_stride);
    let rate = u64::from(geometry.dilation_rate);
    // Rows with an output of some head: that of the largest offset comes last.
    let begin = outputs.start.saturating_sub(first + largest) / rate;
    let end = outputs.end.saturating_sub(first).div_ceil(rate);
    let rows = Range {
        begin: begin.min(unit.rows.end.into()) as u32,
        end: end.min(unit.rows.end.into()) as u32,
    };
    if rows.begin >= rows.end {
        return Vec::new();
    }
    let inside = |heads, rows| {
        let part = Unit {
            heads,
            rows,
            ..unit
        };
        is_inside(geometry, &part, outputs)
    };
    let cut = Planner::cut_rows(unit, rows, inside).into_iter();
    let kept = cut.filter(|(heads, rows)| inside(*heads, *rows));
    kept.map(|(heads, rows)| Unit {
        heads,
        rows,
        ..unit
    })
    .collect()
}
