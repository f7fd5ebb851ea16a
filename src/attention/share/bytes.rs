//! How much a rank receives for attention, in closed form: what the exchange sends for the same needs.

use super::exchange::packed_heads;
use crate::config::{AttentionShape, DilatedAttentionConfig, in_u32};
use crate::device::DType;
use crate::distributed::tokens_of_rank;
use crate::error::{Error, Result};
use crate::plan::branch::BranchGeometry;
use crate::plan::{KeyNeed, ShareNeeds, Tokens};

/// Bytes that a rank receives from the others for one branch, in the forward of one attention. The backward receives as many again, and
/// returns as many elements in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct BranchExchange {
    /// Index of the branch in the configuration.
    pub branch: usize,
    /// Packed keys and values; and the queries of rows whose outputs lie on another rank than they, which only torchscale's rows have.
    pub packed_bytes: u64,
    /// Were keys and values of all tokens and heads of the same segments gathered instead.
    pub dense_bytes: u64,
    /// Were keys and values of the whole sequence passed round in a ring. That serves all branches at once, and knows no segments.
    pub ring_bytes: u64,
}

impl DilatedAttentionConfig {
    /// What rank `rank` of `ranks` receives for attention over a sequence of `tokens` tokens of `dtype`, for each branch. It
    /// walks over the segments that lie on several ranks, not over tokens.
    ///
    /// ```
    /// use dilated_attention::{DType, DilatedAttentionConfig};
    /// let config = DilatedAttentionConfig::new(16, 48, &[4096, 1 << 30], &[1, 4096])?;
    /// let of_branches = config.exchange_of_share(1 << 30, 64, 5, DType::F16)?;
    /// // Segments of 4096 tokens lie on one rank each.
    /// assert_eq!(of_branches[0].packed_bytes, 0);
    /// assert_eq!(of_branches[1].dense_bytes / of_branches[1].packed_bytes, 4096);
    /// # Ok::<(), dilated_attention::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::InvalidShape`] for a sequence that is too long, and for a rank that the group does not have.
    pub fn exchange_of_share(
        &self,
        tokens: usize,
        ranks: usize,
        rank: usize,
        dtype: DType,
    ) -> Result<Vec<BranchExchange>> {
        let share = ShareOfRank::new(self, tokens, ranks, rank)?;
        let own = share.own.end - share.own.start;
        let row_bytes = self.embed_dim() as u64 * dtype.bytes();
        let of_branch = |geometry: &BranchGeometry| {
            let is_of = |branch: u32| branch == geometry.branch;
            let keys = share.needs.keys.iter().filter(|need| is_of(need.branch));
            let (mut heads, mut dense) = (0, 0);
            for need in keys {
                heads += heads_among(geometry, need, &(0..u64::from(geometry.key_len)));
                heads -= heads_among(geometry, need, &share.own);
                dense += outside(&span(geometry, need), &share.own);
            }
            let queries = share.needs.queries.iter();
            let queries = queries.filter(|need| is_of(need.branch));
            let queries: u64 = queries.map(|need| outside(&need.tokens, &share.own)).sum();
            let head_bytes = self.head_dim() as u64 * dtype.bytes();
            BranchExchange {
                branch: geometry.branch as usize,
                packed_bytes: 2 * heads * head_bytes + queries * row_bytes,
                dense_bytes: (2 * dense + queries) * row_bytes,
                // A rank without tokens computes nothing.
                ring_bytes: match own {
                    0 => 0,
                    _ => 2 * (tokens as u64 - own) * row_bytes,
                },
            }
        };
        Ok(share.geometries.iter().map(of_branch).collect())
    }
}

/// The tokens of a rank, and what it needs for them.
pub(crate) struct ShareOfRank {
    pub geometries: Vec<BranchGeometry>,
    pub own: Tokens,
    pub needs: ShareNeeds,
}

impl ShareOfRank {
    pub fn new(
        config: &DilatedAttentionConfig,
        tokens: usize,
        ranks: usize,
        rank: usize,
    ) -> Result<Self> {
        if rank >= ranks {
            return Err(Error::InvalidShape {
                what: "rank".into(),
                given: rank.to_string(),
                need: format!("below the number of ranks, {ranks}"),
            });
        }
        let geometries = geometries_of(config, tokens)?;
        let own = tokens_of_rank(tokens, ranks, rank);
        let own = own.start as u64..own.end as u64;
        Ok(Self {
            needs: ShareNeeds::of(&geometries, &own),
            geometries,
            own,
        })
    }

    /// Heads of packed rows that the rank puts together, its own and padding included.
    #[cfg(feature = "models")]
    pub fn packed_heads(&self) -> u64 {
        let of_need = |need: &KeyNeed| {
            let mut geometries = self.geometries.iter();
            let geometry = geometries.find(|geometry| geometry.branch == need.branch);
            geometry.map_or(0, |geometry| packed_heads(geometry, need.rows) as u64)
        };
        self.needs.keys.iter().map(of_need).sum()
    }
}

/// The branches of attention over one sequence of `tokens` tokens.
///
/// # Errors
/// [`Error::InvalidShape`].
pub(super) fn geometries_of(
    config: &DilatedAttentionConfig,
    tokens: usize,
) -> Result<Vec<BranchGeometry>> {
    AttentionShape::new(1, tokens)?.check_config(config)?;
    let seq_len = in_u32(tokens);
    let branches = match seq_len {
        // Without tokens there is nothing to attend to.
        0 => 0,
        _ => config.branches().len() as u32,
    };
    let geometries = (0..branches)
        .map(|branch| BranchGeometry::cross(config, branch, seq_len, seq_len))
        .filter(|geometry| geometry.head_count > 0);
    Ok(geometries.collect())
}

/// Number of heads of the rows of a need whose tokens are among `tokens`.
fn heads_among(geometry: &BranchGeometry, need: &KeyNeed, tokens: &Tokens) -> u64 {
    let segment = segment_of(geometry, need);
    let (first, end) = (tokens.start.max(segment.start), tokens.end.min(segment.end));
    if first >= end {
        return 0;
    }
    let rate = u64::from(geometry.dilation_rate);
    let heads = geometry.head_begin..geometry.head_begin + geometry.head_count;
    let of_head = |head| {
        let row_zero = segment.start + u64::from(geometry.offset(head));
        // Rows before a token; of these, the ones of the need.
        let before = |token: u64| {
            let rows = token.saturating_sub(row_zero).div_ceil(rate);
            rows.clamp(need.rows.begin.into(), need.rows.end.into())
        };
        before(end) - before(first)
    };
    heads.map(of_head).sum()
}

fn segment_of(geometry: &BranchGeometry, need: &KeyNeed) -> Tokens {
    let length = u64::from(geometry.segment_length);
    let begin = u64::from(need.segment) * length;
    begin..(begin + length).min(geometry.key_len.into())
}

/// All tokens from the first needed row to the last.
fn span(geometry: &BranchGeometry, need: &KeyNeed) -> Tokens {
    let segment = segment_of(geometry, need);
    let place = |row: u32| segment.start + u64::from(row) * u64::from(geometry.dilation_rate);
    place(need.rows.begin)..place(need.rows.end).min(segment.end)
}

/// How many of `tokens` are not in `own`.
fn outside(tokens: &Tokens, own: &Tokens) -> u64 {
    let common = tokens.end.min(own.end);
    let common = common.saturating_sub(tokens.start.max(own.start));
    tokens.end.saturating_sub(tokens.start) - common
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::super::exchange::{Layout, Own, rows_for};
    use super::*;
    use crate::config::{HeadOffsets, Heads, Mask};

    /// Attention of every kind.
    fn configs() -> Vec<DilatedAttentionConfig> {
        let plain = |heads, lengths: &[usize], rates: &[usize]| {
            DilatedAttentionConfig::new(heads, 4, lengths, rates).expect("valid")
        };
        let several = [
            plain(3, &[5, 16], &[1, 4]),
            plain(5, &[4, 11, 64], &[2, 3, 7]),
            plain(2, &[1, 1000], &[1, 9]),
        ];
        let mut all = Vec::new();
        for config in several {
            for offsets in [HeadOffsets::Blocked, HeadOffsets::RoundRobin] {
                let config = config.clone().with_head_offsets(offsets);
                let partitioned = config.clone().with_heads(Heads::Partitioned);
                let torchscale = config.clone().with_torchscale();
                for config in [config, partitioned, torchscale] {
                    all.push(config.clone().with_mask(Mask::Causal));
                    all.push(config);
                }
            }
        }
        all
    }

    /// Calls `check` with every kind of attention, length, number of ranks and rank.
    fn for_all(mut check: impl FnMut(&DilatedAttentionConfig, usize, usize, usize)) {
        for config in configs() {
            for tokens in [0, 1, 4, 13, 33, 70] {
                for ranks in [1, 2, 3, 7, 40] {
                    (0..ranks).for_each(|rank| check(&config, tokens, ranks, rank));
                }
            }
        }
    }

    #[test]
    fn as_many_bytes_as_the_other_ranks_send() {
        for_all(|config, tokens, ranks, rank| {
            let share = ShareOfRank::new(config, tokens, ranks, rank).expect("a share");
            let layout = Layout {
                num_heads: config.num_heads(),
                head_bytes: config.head_dim() * 2,
            };
            let others = (0..ranks).filter(|other| *other != rank);
            let sent = others.map(|other| {
                let range = tokens_of_rank(tokens, ranks, other);
                let tensor = vec![0; range.len() * config.embed_dim() * 2];
                let own = Own {
                    tokens: range.start as u64..range.end as u64,
                    q: &tensor,
                    kv: [&tensor, &tensor],
                };
                let rows = rows_for(&share.geometries, &share.needs, &own, layout);
                rows.expect("rows").len() as u64
            });
            let of_branches = config.exchange_of_share(tokens, ranks, rank, DType::F16);
            let of_branches = of_branches.expect("a share");
            let received: u64 = of_branches.iter().map(|branch| branch.packed_bytes).sum();
            assert_eq!(
                received,
                sent.sum::<u64>(),
                "{config}: {tokens} tokens, rank {rank} of {ranks}"
            );
        });
    }

    /// Counts of a branch by walking over all tokens and heads: keys, and tokens of queries, that are not the share's own.
    fn walk(geometry: &BranchGeometry, own: &Tokens) -> [u64; 2] {
        let heads = geometry.head_begin..geometry.head_begin + geometry.head_count;
        let (length, stride) = (geometry.segment_length, geometry.output_stride);
        let (mut keys, mut all_queries) = (0, 0);
        for segment in 0..geometry.num_segments {
            let inside = [length, stride].into_iter().all(|stride| {
                let place = |segment: u32| (segment * stride).min(geometry.seq_len).into();
                own.start <= place(segment) && place(segment + 1) <= own.end
            });
            // The rows with an output here.
            let mut rows = HashSet::new();
            for token in own.start as u32..own.end as u32 {
                for head in heads.clone() {
                    let row = geometry.row_of_output(head, token);
                    rows.extend(row.filter(|row| row.0 == segment).map(|row| (head, row.1)));
                }
            }
            let Some(last) = rows.iter().map(|row| row.1).max().filter(|_| !inside) else {
                continue;
            };
            for token in segment * length..((segment + 1) * length).min(geometry.key_len) {
                for head in heads.clone() {
                    let from = (token - segment * length).checked_sub(geometry.offset(head));
                    let row = from.filter(|from| from.is_multiple_of(geometry.dilation_rate));
                    let row = row.map(|from| from / geometry.dilation_rate);
                    let is_seen = row.is_some_and(|row| !geometry.causal || row <= last);
                    keys += u64::from(is_seen && !own.contains(&token.into()));
                }
            }
            // From the first query to the last.
            let tokens = rows.into_iter().filter_map(|(head, row)| {
                let token = segment * length + geometry.offset(head) + row * geometry.dilation_rate;
                (row < geometry.real_rows(segment, head)).then_some(u64::from(token))
            });
            let tokens: Vec<u64> = tokens.collect();
            if let (Some(first), Some(last)) = (tokens.iter().min(), tokens.iter().max()) {
                let span = *first..=*last;
                all_queries += span.filter(|token| !own.contains(token)).count() as u64;
            }
        }
        [keys, all_queries]
    }

    #[test]
    fn as_many_bytes_as_a_walk_over_all_tokens_finds() {
        for_all(|config, tokens, ranks, rank| {
            let share = ShareOfRank::new(config, tokens, ranks, rank).expect("a share");
            let of_branches = config.exchange_of_share(tokens, ranks, rank, DType::F32);
            for (geometry, branch) in share.geometries.iter().zip(of_branches.expect("a share")) {
                let [keys, queries] = walk(geometry, &share.own);
                let expected = 2 * keys * config.head_dim() as u64 * 4
                    + queries * config.embed_dim() as u64 * 4;
                assert_eq!(
                    branch.packed_bytes, expected,
                    "{config}: {tokens} tokens, rank {rank} of {ranks}"
                );
                assert!(branch.packed_bytes <= branch.dense_bytes, "{branch:?}");
                assert!(branch.dense_bytes <= branch.ring_bytes + branch.packed_bytes);
            }
        });
    }

    #[test]
    fn a_rank_that_is_not_there_is_an_error() {
        let config = &configs()[0];
        for (ranks, rank) in [(0, 0), (2, 2)] {
            let result = config.exchange_of_share(10, ranks, rank, DType::F32);
            assert!(matches!(result, Err(Error::InvalidShape { .. })));
        }
    }
}
