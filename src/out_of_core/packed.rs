//! Packed keys on the host: what branches with long segments need of all keys and values.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::plan::branch::BranchGeometry;
use crate::plan::dispatch::Range as Rows;

/// Keys and values of the rows of one branch: (segment, row, head of the branch, element), as bytes.
pub(super) struct PackedBranch {
    geometry: BranchGeometry,
    /// Bytes of a head.
    head_bytes: usize,
    keys: [Vec<u8>; 2],
}

impl PackedBranch {
    /// Bytes of the packed keys, and of the packed values.
    pub fn bytes(geometry: &BranchGeometry, head_bytes: usize) -> u64 {
        let rows = u64::from(geometry.num_segments) * u64::from(geometry.rows_per_segment);
        let heads = rows.saturating_mul(geometry.head_count.into());
        heads.saturating_mul(head_bytes as u64)
    }

    /// # Errors
    /// [`Error::HostMemory`] when the host has no memory for them.
    pub fn new(geometry: BranchGeometry, head_bytes: usize) -> Result<Self> {
        let bytes = Self::bytes(&geometry, head_bytes);
        let zeros = || {
            let count = usize::try_from(bytes).ok();
            let zeros = count.and_then(|count| bytemuck::allocation::try_zeroed_vec(count).ok());
            zeros.ok_or(Error::HostMemory {
                what: "packed keys",
                requested_bytes: bytes,
            })
        };
        Ok(Self {
            keys: [zeros()?, zeros()?],
            geometry,
            head_bytes,
        })
    }

    pub fn branch(&self) -> u32 {
        self.geometry.branch
    }

    /// First byte of a row of the branch.
    fn place(&self, segment: u32, row: u32) -> usize {
        let rows = segment as usize * self.geometry.rows_per_segment as usize + row as usize;
        rows * self.geometry.head_count as usize * self.head_bytes
    }

    /// Keeps what the branch needs of `tokens`, whose keys and values are `rows`: (token, head, element).
    pub fn pack(&mut self, tokens: Range<usize>, rows: [&[u8]; 2]) {
        let geometry = &self.geometry;
        let token_bytes = rows[0].len().checked_div(tokens.len()).unwrap_or(0);
        let length = geometry.segment_length as usize;
        for head in geometry.head_begin..geometry.head_begin + geometry.head_count {
            let (offset, rate) = (
                geometry.offset(head) as usize,
                geometry.dilation_rate as usize,
            );
            let in_row = (head - geometry.head_begin) as usize * self.head_bytes;
            let in_token = head as usize * self.head_bytes;
            let mut token = tokens.start;
            while token < tokens.end {
                let (segment, inside) = (token / length, token % length);
                // The next token of this head in the segment, if there is one before the segment's end.
                let row = inside.saturating_sub(offset).div_ceil(rate);
                let next = segment * length + offset + row * rate;
                if offset + row * rate >= length {
                    token = (segment + 1) * length;
                    continue;
                }
                token = next + 1;
                if next >= tokens.end {
                    break;
                }
                let to = self.place(segment as u32, row as u32) + in_row;
                let from = (next - tokens.start) * token_bytes + in_token;
                for (packed, rows) in self.keys.iter_mut().zip(rows) {
                    let bytes = &rows[from..][..self.head_bytes];
                    packed[to..][..self.head_bytes].copy_from_slice(bytes);
                }
            }
        }
    }

    /// Keys and values of `rows` of a segment.
    pub fn rows(&self, segment: u32, rows: Rows) -> [&[u8]; 2] {
        let range = self.place(segment, rows.begin)..self.place(segment, rows.end);
        self.keys.each_ref().map(|bytes| &bytes[range.clone()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{DilatedAttentionConfig, HeadOffsets, Heads};

    /// Every token and head says in two bytes who it is; packed rows must be those that the branch reads, however tokens come.
    #[test]
    fn rows_are_those_of_the_branch() {
        for (offsets, heads, lengths, rates) in [
            (
                HeadOffsets::Blocked,
                Heads::EveryBranch,
                [40usize, 17],
                [3usize, 4],
            ),
            (
                HeadOffsets::RoundRobin,
                Heads::EveryBranch,
                [100, 9],
                [2, 5],
            ),
            (HeadOffsets::Blocked, Heads::Partitioned, [33, 50], [4, 7]),
        ] {
            let config = DilatedAttentionConfig::new(5, 8, &lengths, &rates).expect("valid");
            let config = config.with_head_offsets(offsets).with_heads(heads);
            let tokens = 83u32;
            let name = |token: u32, head: u32| [token as u8, head as u8];
            let all: Vec<u8> = (0..tokens)
                .flat_map(|token| (0..5).flat_map(move |head| name(token, head)))
                .collect();
            for branch in 0..2 {
                let geometry = BranchGeometry::cross(&config, branch, tokens, tokens);
                for piece in [1usize, 7, 83] {
                    let mut packed = PackedBranch::new(geometry.clone(), 2).expect("small");
                    for (first, rows) in (0..).step_by(piece).zip(all.chunks(piece * 10)) {
                        packed.pack(first..first + rows.len() / 10, [rows, rows]);
                    }
                    for segment in 0..geometry.num_segments {
                        for (index, head) in (geometry.head_begin
                            ..geometry.head_begin + geometry.head_count)
                            .enumerate()
                        {
                            for row in 0..geometry.real_keys(segment, head) {
                                let rows = Rows {
                                    begin: row,
                                    end: row + 1,
                                };
                                let [k, v] = packed.rows(segment, rows);
                                let token = segment * geometry.segment_length
                                    + geometry.offset(head)
                                    + row * geometry.dilation_rate;
                                assert_eq!(k[2 * index..][..2], name(token, head));
                                assert_eq!(k, v);
                            }
                        }
                    }
                }
            }
        }
    }
}
