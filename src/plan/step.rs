//! The plan of one decoding step: attention of one token over the keys up to it.
//!
//! A head of a branch takes part if it writes the token. Which heads these are, and from which row of which segment, follows from
//! the geometry of a sequence that ends with the token. Heads with the same row share a dispatch. The dispatches are those of the
//! forward, each with a single row.

use super::branch::BranchGeometry;
use super::dispatch::{AttentionDispatch, KeySource, Range};
use super::window::{RowLayout, key_windows};
use crate::config::{DilatedAttentionConfig, in_u32};
use crate::device::{DeviceCaps, ElementFormat};
use crate::error::{Error, Result};
use crate::kernels::{Pass, fold_grid};

/// Sizes and layout of the tensors of a step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StepLayout {
    /// Batch items.
    pub batch: u32,
    /// Number of the token that is computed, the same for each item.
    pub token: u32,
    /// Tokens of an item in the cache of keys and values.
    pub capacity: u32,
    /// Whether queries lie in a cache with `capacity` tokens for each item, too; otherwise there is only the query of this token.
    /// The cache is needed where the row that writes a token reads the query of another token
    /// ([`OutputRows::Torchscale`](crate::OutputRows::Torchscale)).
    pub query_cache: bool,
}

/// The plan of a decoding step.
#[derive(Clone, Debug)]
pub(crate) struct StepPlan {
    /// Whether the output is cleared first, and all dispatches merge. So it is if for some item no dispatch writes all heads.
    pub clears: bool,
    /// The dispatches, in order.
    pub dispatches: Vec<AttentionDispatch>,
}

/// Plans a step.
pub(crate) fn plan_step(
    config: &DilatedAttentionConfig,
    caps: &DeviceCaps,
    format: ElementFormat,
    layout: StepLayout,
) -> Result<StepPlan> {
    let StepLayout {
        batch,
        token,
        capacity,
        query_cache,
    } = layout;
    let tensor = RowLayout::of_activations(config, format, caps);
    let [state, row_stats] = [
        RowLayout::of_state(config, caps),
        RowLayout::of_row_stats(config, caps),
    ];
    let too_small = || Error::BindingTooSmall {
        what: "k".into(),
        requested_bytes: tensor.row_bytes + caps.storage_offset_alignment,
        limit_bytes: caps.max_binding_bytes,
    };
    let mut dispatches = Vec::new();
    for branch in 0..config.branches().len() as u32 {
        let geometry = BranchGeometry::new(config, branch, token + 1);
        for (heads, segment, row) in geometry.rows_of_token(token) {
            let keys = geometry.visible_keys(segment, heads.begin, row);
            let offset = geometry.offset(heads.begin);
            let place = |row: u32| {
                u64::from(segment) * u64::from(geometry.segment_length)
                    + u64::from(offset)
                    + u64::from(row) * u64::from(geometry.dilation_rate)
            };
            let windows = (0..batch).map(|item| {
                let first = u64::from(item) * u64::from(capacity) + place(0);
                let windows = key_windows(keys, geometry.dilation_rate, &[(tensor, first)], caps);
                Some((item, windows?))
            });
            let windows: Vec<(u32, Vec<(u32, u32)>)> =
                windows.collect::<Option<_>>().ok_or_else(too_small)?;
            let windows = windows
                .iter()
                .flat_map(|(item, windows)| windows.iter().map(move |window| (*item, *window)));
            for (item, (begin, end)) in windows {
                let key_rows = Range { begin, end };
                let (first_key, last_key) = match key_rows.len() {
                    0 => (0, 0),
                    _ => (place(key_rows.begin), place(key_rows.end - 1)),
                };
                // The query of a padding row is not read.
                let has_query = row < geometry.real_rows(segment, heads.begin);
                let query = if has_query {
                    place(row)
                } else {
                    u64::from(token)
                };
                let in_cache = u64::from(item) * u64::from(capacity);
                let query_row = match query_cache {
                    true => in_cache + query,
                    false => u64::from(item),
                };
                let window = |layout: &RowLayout, begin: u64, end: u64| {
                    layout.window(begin, end, caps).ok_or_else(too_small)
                };
                let item_row = u64::from(item);
                let grid =
                    fold_grid(heads.len(), caps.max_workgroups_per_dimension).ok_or_else(|| {
                        Error::SizeOverflow {
                            what: "workgroups of one dispatch".into(),
                            given: format!("{} heads", heads.len()),
                        }
                    })?;
                dispatches.push(AttentionDispatch {
                    pass: Pass::Forward,
                    geometry: geometry.clone(),
                    items: Range {
                        begin: item,
                        end: item + 1,
                    },
                    heads,
                    segments: Range {
                        begin: segment,
                        end: segment + 1,
                    },
                    rows: Range {
                        begin: row,
                        end: row + 1,
                    },
                    key_rows,
                    merges: true,
                    q: window(&tensor, query_row, query_row + 1)?,
                    keys: KeySource::Tokens,
                    kv: window(&tensor, in_cache + first_key, in_cache + last_key + 1)?,
                    out: window(&tensor, item_row, item_row + 1)?,
                    state: window(&state, item_row, item_row + 1)?,
                    row_stats: window(&row_stats, item_row, item_row + 1)?,
                    // Tokens are below 2^31.
                    first_tokens: [query as u32, first_key as u32, token],
                    num_workgroups: heads.len(),
                    grid,
                });
            }
        }
    }
    let num_heads = in_u32(config.num_heads());
    let all_heads = |dispatch: &AttentionDispatch| {
        dispatch.heads.len() == num_heads && dispatch.key_rows.begin == 0
    };
    // In each item, a dispatch that writes all heads comes first. The sort is stable: later windows of keys stay behind the first
    // window of their branch.
    dispatches.sort_by_key(|dispatch| (dispatch.items.begin, !all_heads(dispatch)));
    let mut firsts: Vec<&mut AttentionDispatch> = dispatches
        .chunk_by_mut(|a, b| a.items == b.items)
        .filter_map(|of_item| of_item.first_mut().filter(|first| all_heads(first)))
        .collect();
    let clears = firsts.len() < batch as usize;
    if !clears {
        firsts.iter_mut().for_each(|first| first.merges = false);
    }
    Ok(StepPlan { clears, dispatches })
}
