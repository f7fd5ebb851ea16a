//! The plan of a rank's share of a sequence.
//!
//! ```text
//! for each round of passes, for each branch, for each stage of the round
//!   segments within the share     as in an ordinary plan, from the share's own tensors
//!   a segment on several ranks    rows with an output in the share x windows of packed keys, which come from all these ranks
//! ```
//! Where outputs lie behind their queries (torchscale's rows), queries of such a segment may come from other ranks, too.

use std::collections::HashMap;

use super::block::{all_heads, rows_inside, segments_of};
use super::{Held, Planner, Range, Tokens, Unit, Work, chunks, rows_up_to, runs, token_span};
use crate::config::{Heads, MixGradient, in_u32};
use crate::error::Result;
use crate::plan::branch::BranchGeometry;
use crate::plan::dispatch::{AttentionDispatch, KeySource};

/// Rows of keys of a segment that lies on several ranks.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct KeyNeed {
    pub branch: u32,
    pub segment: u32,
    pub rows: Range,
}

/// Queries of a segment of which some lie on other ranks.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct QueryNeed {
    pub branch: u32,
    pub segment: u32,
    pub tokens: Tokens,
}

/// What the outputs of a share take that does not lie in it alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ShareNeeds {
    pub keys: Vec<KeyNeed>,
    pub queries: Vec<QueryNeed>,
}

impl ShareNeeds {
    /// The needs of the outputs `share`. Every rank can tell those of all.
    pub fn of(geometries: &[BranchGeometry], share: &Tokens) -> Self {
        let mut needs = Self::default();
        if share.is_empty() {
            return needs;
        }
        for geometry in geometries {
            let inside = |segments| is_inside(geometry, segments, share);
            for (segments, is_inside) in runs(segments_of(geometry, share), inside) {
                // What is not inside comes one by one; it may be no segment at all.
                let segment = segments.begin;
                if is_inside || segments.len() == 0 {
                    continue;
                }
                let units = rows_inside(geometry, segment, share);
                let Some(end) = units.iter().map(|unit| unit.rows.end).max() else {
                    continue;
                };
                let branch = geometry.branch;
                needs.keys.push(KeyNeed {
                    branch,
                    segment,
                    rows: Range {
                        begin: 0,
                        end: match geometry.causal {
                            true => end,
                            false => geometry.rows_per_segment,
                        },
                    },
                });
                if let Some(tokens) = queries_of(geometry, &units)
                    && (tokens.start < share.start || tokens.end > share.end)
                {
                    needs.queries.push(QueryNeed {
                        branch,
                        segment,
                        tokens,
                    });
                }
            }
        }
        needs
    }
}

/// Packed keys of all heads of a branch.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct KeyWindow {
    pub branch: u32,
    pub segment: u32,
    pub rows: Range,
}

/// Dispatches over the same tensors.
#[derive(Clone, Debug)]
pub(crate) struct ShareWork {
    /// Which of the needed queries; `None` for those of the share.
    pub queries: Option<usize>,
    /// Which window of packed keys; `None` for keys of the share, packed by the dispatches themselves if they are.
    pub window: Option<usize>,
    pub dispatches: Vec<AttentionDispatch>,
}

/// The plan of a share: all works, in order.
#[derive(Clone, Debug)]
pub(crate) struct SharePlan {
    pub windows: Vec<KeyWindow>,
    pub works: Vec<ShareWork>,
    /// Whether outputs and what is kept of each row are set to 0 first.
    pub clears: bool,
}

/// A plan under way.
#[derive(Default)]
struct Parts {
    windows: Vec<KeyWindow>,
    numbers: HashMap<KeyWindow, usize>,
    works: Vec<ShareWork>,
}

impl Parts {
    fn window(&mut self, window: KeyWindow) -> usize {
        let next = self.windows.len();
        let number = *self.numbers.entry(window.clone()).or_insert(next);
        if number == next {
            self.windows.push(window);
        }
        number
    }

    fn add(&mut self, planner: &mut Planner<'_>, queries: Option<usize>, window: Option<usize>) {
        let dispatches = std::mem::take(&mut planner.dispatches);
        if !dispatches.is_empty() {
            self.works.push(ShareWork {
                queries,
                window,
                dispatches,
            });
        }
    }
}

impl Planner<'_> {
    /// Plans the outputs `share` of the shape's only item, which need `needs`. Gradients are added to what is there.
    pub fn plan_share(mut self, share: &Tokens, needs: &ShareNeeds) -> Result<SharePlan> {
        let (config, seq_len) = (self.config, in_u32(self.shape.seq_len()));
        let geometries = self.geometries(seq_len, seq_len);
        let every_branch = config.heads() == Heads::EveryBranch;
        let mut parts = Parts::default();
        for stages in self.rounds {
            for (order, geometry) in geometries.iter().enumerate() {
                for passes in stages {
                    let work = Work {
                        geometry,
                        passes,
                        follows: every_branch && order > 0,
                        sweeps_all: config.gradient() == MixGradient::Exact,
                        adds: true,
                    };
                    self.plan_branch_of_share(&work, share, needs, &mut parts)?;
                }
            }
        }
        let rate_one =
            |geometry: &BranchGeometry| geometry.covers_everything(in_u32(config.num_heads()));
        Ok(SharePlan {
            windows: parts.windows,
            works: parts.works,
            clears: !geometries.first().is_some_and(rate_one),
        })
    }

    fn plan_branch_of_share(
        &mut self,
        work: &Work<'_>,
        share: &Tokens,
        needs: &ShareNeeds,
        parts: &mut Parts,
    ) -> Result<()> {
        let geometry = work.geometry;
        let own = Held {
            queries: share.start,
            keys: share.start,
            outputs: share.start,
        };
        let inside = |segments| is_inside(geometry, segments, share);
        for (segments, is_inside) in runs(segments_of(geometry, share), inside) {
            self.held = Some(own);
            if is_inside {
                let unit = Unit {
                    items: Range { begin: 0, end: 1 },
                    heads: all_heads(geometry),
                    segments,
                    rows: rows_up_to(geometry, geometry.seq_len),
                    key_rows: rows_up_to(geometry, geometry.key_len),
                    keys: KeySource::Tokens,
                };
                self.plan_item(work, unit)?;
                parts.add(self, None, None);
                continue;
            }
            let is_of =
                |need: &KeyNeed| (need.branch, need.segment) == (geometry.branch, segments.begin);
            // Without a need, no row has an output here.
            if let Some(need) = needs.keys.iter().find(|need| is_of(need)) {
                self.plan_segment_of_share(work, share, (need, &needs.queries), parts)?;
            }
        }
        Ok(())
    }

    /// One segment that lies on several ranks.
    fn plan_segment_of_share(
        &mut self,
        work: &Work<'_>,
        share: &Tokens,
        (need, queries): (&KeyNeed, &[QueryNeed]),
        parts: &mut Parts,
    ) -> Result<()> {
        let geometry = work.geometry;
        let is_of =
            |query: &QueryNeed| (query.branch, query.segment) == (need.branch, need.segment);
        let of_others = queries.iter().position(is_of);
        let held = Held {
            queries: of_others.map_or(share.start, |index| queries[index].tokens.start),
            keys: share.start,
            outputs: share.start,
        };
        self.held = Some(held);
        let rate = u64::from(geometry.dilation_rate);
        // As for one segment in one piece: a window of R rows spans R * r tokens, or one head is taken at a time.
        let (heads_per_window, rows_per_window) = match self.max_rows / rate {
            0 => (1, 1),
            rows => (geometry.head_count, rows),
        };
        let rows_per_window = rows_per_window.min(u64::from(u32::MAX)) as u32;
        let units = rows_inside(geometry, need.segment, share);
        let units = units.into_iter().flat_map(|unit| {
            let heads = chunks(unit.heads, heads_per_window);
            heads.map(move |heads| Unit { heads, ..unit })
        });
        let windows = units.flat_map(|unit| self.row_windows(geometry, unit, rows_per_window));
        let windows: Vec<Unit> = windows.collect();
        let heads = all_heads(geometry);
        for key_rows in chunks(need.rows, self.packed_rows(heads)) {
            let keys_of_all = Unit {
                heads,
                key_rows,
                ..all_of(geometry, need.segment)
            };
            let (stride, len) = (geometry.segment_length, geometry.key_len);
            let have_keys = token_span(geometry, &keys_of_all, key_rows, stride, len).is_some();
            let keys = match have_keys {
                true => KeySource::Packed {
                    heads,
                    rows: key_rows,
                },
                // Rows may still see zero keys.
                false => KeySource::Tokens,
            };
            for part in &windows {
                let part = Unit {
                    key_rows,
                    keys,
                    ..*part
                };
                if part.has_pairs(geometry) {
                    self.push(work, part)?;
                }
            }
            let window = have_keys.then(|| {
                parts.window(KeyWindow {
                    branch: need.branch,
                    segment: need.segment,
                    rows: key_rows,
                })
            });
            parts.add(self, of_others, window);
        }
        Ok(())
    }
}

fn one(segment: u32) -> Range {
    Range {
        begin: segment,
        end: segment + 1,
    }
}

fn all_of(geometry: &BranchGeometry, segment: u32) -> Unit {
    let rows = Range {
        begin: 0,
        end: geometry.rows_per_segment,
    };
    Unit {
        items: Range { begin: 0, end: 1 },
        heads: all_heads(geometry),
        segments: one(segment),
        rows,
        key_rows: rows,
        keys: KeySource::Tokens,
    }
}

/// Whether the tokens of some segments and their outputs are all in the share.
fn is_inside(geometry: &BranchGeometry, segments: Range, share: &Tokens) -> bool {
    let len = u64::from(geometry.seq_len);
    [geometry.segment_length, geometry.output_stride]
        .into_iter()
        .all(|stride| {
            let place = |segment: u32| (u64::from(segment) * u64::from(stride)).min(len);
            share.start <= place(segments.begin) && place(segments.end) <= share.end
        })
}

/// The tokens of the queries of some rows.
fn queries_of(geometry: &BranchGeometry, units: &[Unit]) -> Option<Tokens> {
    let spans = units.iter().filter_map(|unit| {
        let stride = geometry.segment_length;
        token_span(geometry, unit, unit.rows, stride, geometry.seq_len)
    });
    let all = spans.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)));
    all.map(|(begin, end)| begin..end)
}
