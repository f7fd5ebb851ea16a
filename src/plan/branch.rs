//! The index algebra of one branch: which token is which row, which rows are real, and how many keys each row sees.
//!
//! ```text
//! w = min(segment_length, N)    segments are cut to the sequence       n = ceil(N / w)   segments, the last one ragged
//! L = ceil(w / r)               rows of a segment                      o = offset of the head
//! row t of segment s reads token   s*w + o + r*t       real iff o + r*t < w and the token < N; real rows are a prefix
//! row t of segment s writes token  s*g + o + r*t       g = w (aligned) or L*r (torchscale)
//! ```
//! In terms of `t`, a branch is ordinary attention over `L` rows for each item, segment and head; rows are merely `r` tokens apart
//! in memory. Kernels get these numbers and compute the addresses, so nothing is gathered or scattered.

use super::dispatch::Range;
use crate::config::{
    DilatedAttentionConfig, HeadOffsets, Heads, Mask, OutputRows, Padding, in_u32,
};

/// One branch of a configuration applied to sequences of one length.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BranchGeometry {
    /// Index of the branch in the configuration.
    pub branch: u32,
    /// Length of the sequence in tokens, N; at least 1.
    pub seq_len: u32,
    /// Length of the sequence of keys in tokens. It differs from N in cross attention only.
    pub key_len: u32,
    /// Tokens in a segment after cutting to the sequence, w.
    pub segment_length: u32,
    /// Tokens from row to row, r.
    pub dilation_rate: u32,
    /// Number of segments, n.
    pub num_segments: u32,
    /// Rows of a segment, padding rows included, L.
    pub rows_per_segment: u32,
    /// Tokens from the output of one segment to that of the next, g.
    pub output_stride: u32,
    /// First head that takes part.
    pub head_begin: u32,
    /// Number of heads that take part.
    pub head_count: u32,
    /// `offset(h) = offset_base + (h / offset_div) % offset_mod`.
    pub offset_base: u32,
    /// See [`offset_base`](Self::offset_base).
    pub offset_div: u32,
    /// See [`offset_base`](Self::offset_base).
    pub offset_mod: u32,
    /// Whether padding rows of a segment are written too, as rows with a zero query.
    pub phantom_rows: bool,
    /// Whether padding rows of a segment count as keys of score 0 and value 0.
    pub zero_keys: bool,
    /// Whether a row sees only keys up to its own place.
    pub causal: bool,
}

impl BranchGeometry {
    /// Branch `branch` of `config` over sequences of `seq_len >= 1` tokens.
    ///
    /// # Panics
    /// When the configuration has no such branch or `seq_len` is 0.
    #[cfg(feature = "models")]
    pub fn new(config: &DilatedAttentionConfig, branch: u32, seq_len: u32) -> Self {
        Self::cross(config, branch, seq_len, seq_len)
    }

    /// Branch `branch` of `config` over `seq_len >= 1` queries and `key_len` keys of another sequence.
    ///
    /// # Panics
    /// As [`new`](Self::new).
    pub fn cross(config: &DilatedAttentionConfig, branch: u32, seq_len: u32, key_len: u32) -> Self {
        assert!(seq_len > 0, "a sequence without tokens has no geometry");
        let given = config.branches()[branch as usize];
        let segment_length = in_u32(given.segment_length).min(seq_len.max(key_len));
        let dilation_rate = in_u32(given.dilation_rate);
        let rows_per_segment = segment_length.div_ceil(dilation_rate);
        let phantom_rows = config.output_rows() == OutputRows::Torchscale;
        let num_segments = seq_len.div_ceil(segment_length);
        let num_heads = in_u32(config.num_heads());
        let (head_begin, head_count, offset_base, offset_div, offset_mod) = match config.heads() {
            Heads::EveryBranch => match config.head_offsets() {
                HeadOffsets::Blocked => (
                    0,
                    num_heads,
                    0,
                    num_heads.div_ceil(dilation_rate),
                    dilation_rate,
                ),
                HeadOffsets::RoundRobin => (0, num_heads, 0, 1, dilation_rate),
            },
            Heads::Partitioned => {
                let groups = config.branches().len() as u32;
                let (size, larger) = (num_heads / groups, num_heads % groups);
                let begin = branch * size + branch.min(larger);
                let count = size + u32::from(branch < larger);
                (begin, count, branch % dilation_rate, 1, 1)
            }
        };
        Self {
            branch,
            seq_len,
            key_len,
            segment_length,
            dilation_rate,
            num_segments,
            rows_per_segment,
            // With one segment the stride is never used: keep it small, so that no product overflows.
            output_stride: if phantom_rows && num_segments > 1 {
                rows_per_segment * dilation_rate
            } else {
                segment_length
            },
            head_begin,
            head_count,
            offset_base,
            offset_div,
            offset_mod,
            phantom_rows,
            zero_keys: config.padding() == Padding::ZeroKeys,
            causal: config.mask() == Mask::Causal,
        }
    }

    /// Offset of head `head` inside a dilated segment, in tokens.
    pub fn offset(&self, head: u32) -> u32 {
        self.offset_base + (head / self.offset_div) % self.offset_mod
    }

    /// Number of rows of segment `segment` that have a query: the first ones of the segment.
    pub fn real_rows(&self, segment: u32, head: u32) -> u32 {
        self.rows_within(segment, head, self.seq_len)
    }

    /// Number of rows of segment `segment` that have a key: the first ones of the segment.
    pub fn real_keys(&self, segment: u32, head: u32) -> u32 {
        self.rows_within(segment, head, self.key_len)
    }

    fn rows_within(&self, segment: u32, head: u32, len: u32) -> u32 {
        let begin = u64::from(segment) * u64::from(self.segment_length);
        let tokens =
            u64::from(self.segment_length).min(u64::from(len).saturating_sub(begin)) as u32;
        tokens
            .saturating_sub(self.offset(head))
            .div_ceil(self.dilation_rate)
    }

    /// Number of rows of segment `segment` that are written: the first ones of the segment.
    pub fn written_rows(&self, segment: u32, head: u32) -> u32 {
        if !self.phantom_rows {
            return self.real_rows(segment, head);
        }
        let begin = u64::from(segment) * u64::from(self.output_stride);
        let tokens = u64::from(self.seq_len)
            .saturating_sub(begin)
            .saturating_sub(u64::from(self.offset(head)));
        tokens
            .div_ceil(u64::from(self.dilation_rate))
            .min(u64::from(self.rows_per_segment)) as u32
    }

    /// The token that row `row` of segment `segment` is written to.
    #[cfg(feature = "testing")]
    pub fn output_token(&self, segment: u32, head: u32, row: u32) -> u64 {
        u64::from(segment) * u64::from(self.output_stride)
            + u64::from(self.offset(head))
            + u64::from(row) * u64::from(self.dilation_rate)
    }

    /// Segment and row that write token `token` of this head; `None` if the branch writes no such row.
    pub fn row_of_output(&self, head: u32, token: u32) -> Option<(u32, u32)> {
        let segment = token / self.output_stride;
        let inside = (token % self.output_stride).checked_sub(self.offset(head))?;
        let covered = token < self.seq_len
            && segment < self.num_segments
            && inside.is_multiple_of(self.dilation_rate);
        let row = inside / self.dilation_rate;
        (covered && row < self.written_rows(segment, head)).then_some((segment, row))
    }

    /// Number of real keys that row `row` of `segment` sees: the first ones of the segment.
    pub fn visible_keys(&self, segment: u32, head: u32, row: u32) -> u32 {
        let real = self.real_keys(segment, head);
        if self.causal { real.min(row + 1) } else { real }
    }

    /// Number of zero keys that row `row` of `segment` sees.
    #[cfg(feature = "testing")]
    pub fn visible_zero_keys(&self, segment: u32, head: u32, row: u32) -> u32 {
        if !self.zero_keys {
            return 0;
        }
        let rows = if self.causal {
            row + 1
        } else {
            self.rows_per_segment
        };
        rows.saturating_sub(self.real_keys(segment, head))
    }

    /// Runs of heads that write `token` from the same row of the same segment: heads, segment, row.
    pub(crate) fn rows_of_token(&self, token: u32) -> Vec<(Range, u32, u32)> {
        let mut runs: Vec<(Range, u32, u32)> = Vec::new();
        for head in self.head_begin..self.head_begin + self.head_count {
            let Some((segment, row)) = self.row_of_output(head, token) else {
                continue;
            };
            match runs.last_mut() {
                Some((heads, s, r)) if heads.end == head && (*s, *r) == (segment, row) => {
                    heads.end = head + 1;
                }
                _ => {
                    let heads = Range {
                        begin: head,
                        end: head + 1,
                    };
                    runs.push((heads, segment, row));
                }
            }
        }
        runs
    }

    /// Whether the branch writes every token of every head. If such a branch goes first, the output need not be cleared.
    pub fn covers_everything(&self, num_heads: u32) -> bool {
        self.head_count == num_heads && self.dilation_rate == 1
    }
}
