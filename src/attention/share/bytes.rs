//! How much a rank receives for attention, in closed form: what the exchange sends for the same needs.

#[cfg(feature = "models")]
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

    /// Keys and queries that a branch needs of other ranks, counted by walking over all tokens and heads.
    fn walk(geometry: &BranchGeometry, share: &ShareOfRank) -> [u64; 2] {
        let (length, rate) = (geometry.segment_length, geometry.dilation_rate);
        let heads = geometry.head_begin..geometry.head_begin + geometry.head_count;
        let others = (0..geometry.key_len).filter(|token| !share.own.contains(&(*token).into()));
        let [mut keys, mut queries] = [0; 2];
        for token in others {
            for head in heads.clone() {
                let from_row_zero = (token % length).checked_sub(geometry.offset(head));
                let row = from_row_zero.filter(|tokens| tokens.is_multiple_of(rate));
                let row = row.map(|tokens| tokens / rate);
                let needs_it = |need: &&KeyNeed| {
                    let rows = need.rows.begin..need.rows.end;
                    (need.branch, need.segment) == (geometry.branch, token / length)
                        && row.is_some_and(|row| rows.contains(&row))
                };
                keys += share.needs.keys.iter().filter(needs_it).count() as u64;
            }
            let of_branch = share.needs.queries.iter();
            let of_branch = of_branch.filter(|need| need.branch == geometry.branch);
            queries += of_branch
                .filter(|need| need.tokens.contains(&token.into()))
                .count() as u64;
        }
        [keys, queries]
    }

    #[test]
    fn as_many_bytes_as_a_walk_over_all_tokens_finds() {
        for_all(|config, tokens, ranks, rank| {
            let share = ShareOfRank::new(config, tokens, ranks, rank).expect("a share");
            let of_branches = config.exchange_of_share(tokens, ranks, rank, DType::F32);
            for (geometry, branch) in share.geometries.iter().zip(of_branches.expect("a share")) {
                let [keys, queries] = walk(geometry, &share);
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
