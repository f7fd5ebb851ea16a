//! Rows and keys of one branch, written literally after the definition in the documentation of the [parent module](super).

use crate::config::{DilatedAttentionConfig, HeadOffsets, Heads, Mask, OutputRows, Padding};

/// One branch over one sequence. Numbers are 64 bits wide, so no product of two 32-bit sizes overflows.
pub(super) struct SparseBranch {
    /// Tokens of the queries' sequence, N.
    seq_len: u64,
    /// Tokens of the keys' sequence. It differs from N in cross attention only.
    key_len: u64,
    /// Tokens of a segment, w'.
    segment_length: u64,
    /// Tokens from row to row, r.
    dilation_rate: u64,
    /// Rows of a segment, padding included, L.
    rows: u64,
    /// Tokens from the outputs of one segment to those of the next.
    written_stride: u64,
    /// Whether padding is written, with a query of zeros.
    writes_padding: bool,
    causal: bool,
    /// Whether padding counts as keys of score 0 and value 0.
    zero_keys: bool,
    /// Offset of each head inside a segment; `None` for a head that takes no part in the branch.
    offsets: Vec<Option<u64>>,
}

/// A row that a branch writes.
pub(super) struct SparseRow {
    /// Head.
    head: usize,
    /// Segment of the row, s.
    segment: u64,
    /// Number of the row in its segment, t.
    row: u64,
}

/// A key that a row sees.
pub(super) enum Key {
    /// A token.
    Token(u64),
    /// Padding that counts as a key of score 0 and value 0.
    Zero,
}

impl SparseBranch {
    /// Branch `branch` of `config` over `seq_len >= 1` queries and `key_len` keys.
    pub fn new(
        config: &DilatedAttentionConfig,
        branch: usize,
        (seq_len, key_len): (u64, u64),
    ) -> Self {
        let given = config.branches()[branch];
        let segment_length = (given.segment_length as u64).min(seq_len.max(key_len));
        let dilation_rate = given.dilation_rate as u64;
        let rows = segment_length.div_ceil(dilation_rate);
        let torchscale_rows = config.output_rows() == OutputRows::Torchscale;
        Self {
            seq_len,
            key_len,
            segment_length,
            dilation_rate,
            rows,
            written_stride: if torchscale_rows {
                rows * dilation_rate
            } else {
                segment_length
            },
            writes_padding: torchscale_rows,
            causal: config.mask() == Mask::Causal,
            zero_keys: config.padding() == Padding::ZeroKeys,
            offsets: head_offsets(config, branch),
        }
    }

    /// The row that is written to token `token` of head `head`; `None` if there is no such row.
    pub fn row_written_to(&self, head: usize, token: u64) -> Option<SparseRow> {
        if token >= self.seq_len {
            return None;
        }
        let segment = token / self.written_stride;
        let from_offset = (token % self.written_stride).checked_sub(self.offsets[head]?)?;
        let row = SparseRow {
            head,
            segment,
            row: from_offset / self.dilation_rate,
        };
        let on_grid = from_offset.is_multiple_of(self.dilation_rate) && row.row < self.rows;
        let segment_exists = segment * self.segment_length < self.seq_len;
        let written = self.writes_padding || self.query_token(&row).is_some();
        (on_grid && segment_exists && written).then_some(row)
    }

    /// The token whose query the row reads; `None` if the row is padding.
    pub fn query_token(&self, row: &SparseRow) -> Option<u64> {
        self.token(row.head, row.segment, row.row, self.seq_len)
    }

    /// The keys that the row sees, in order.
    pub fn keys(&self, row: &SparseRow) -> impl Iterator<Item = Key> {
        let (head, segment) = (row.head, row.segment);
        let end = if self.causal { row.row + 1 } else { self.rows };
        (0..end).filter_map(
            move |key_row| match self.token(head, segment, key_row, self.key_len) {
                Some(token) => Some(Key::Token(token)),
                None => self.zero_keys.then_some(Key::Zero),
            },
        )
    }

    /// The token that row `row` of a segment stands for in a sequence of `len` tokens; `None` if the row is padding.
    fn token(&self, head: usize, segment: u64, row: u64, len: u64) -> Option<u64> {
        let inside = self.offsets[head]? + row * self.dilation_rate;
        let token = segment * self.segment_length + inside;
        (inside < self.segment_length && token < len).then_some(token)
    }
}

/// The offset of every head in branch `branch`; `None` for heads that take no part in it.
fn head_offsets(config: &DilatedAttentionConfig, branch: usize) -> Vec<Option<u64>> {
    let num_heads = config.num_heads() as u64;
    let rate = config.branches()[branch].dilation_rate as u64;
    let offset = |head: u64| match config.heads() {
        Heads::EveryBranch => Some(match config.head_offsets() {
            HeadOffsets::Blocked => head / num_heads.div_ceil(rate),
            HeadOffsets::RoundRobin => head % rate,
        }),
        Heads::Partitioned => (group_of_head(head, num_heads, config.branches().len() as u64)
            == branch as u64)
            .then_some(branch as u64 % rate),
    };
    (0..num_heads).map(offset).collect()
}

/// The group of `head` when heads are divided into `groups` contiguous groups. The first `num_heads % groups` groups have one head more.
fn group_of_head(head: u64, num_heads: u64, groups: u64) -> u64 {
    let mut first_of_next = 0;
    for group in 0..groups {
        first_of_next += num_heads / groups + u64::from(group < num_heads % groups);
        if head < first_of_next {
            return group;
        }
    }
    unreachable!("the groups hold all {num_heads} heads, so also head {head}")
}
