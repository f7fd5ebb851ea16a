//! The parts of an attention configuration that the choice of its kernel depends on.

use super::Fields;
use crate::config::{DilatedAttentionConfig, Mask, in_u32};

/// The parts of a configuration that the size of a kernel's tile, and so the choice of the kernel, depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segments {
    /// Elements in one head.
    pub head_dim: u32,
    /// Rows of the shortest segment, rounded up to a power of two, at most [`MOST_ROWS`](Self::MOST_ROWS).
    pub rows: u32,
    /// Which keys a row sees.
    pub mask: Mask,
}

impl Segments {
    /// Segments with more rows than this count as having this many: it is twice the rows of the largest kernel tile, and for longer
    /// segments the choice is the same.
    pub const MOST_ROWS: u32 = 2048;

    /// The segments of `config`.
    pub fn of(config: &DilatedAttentionConfig) -> Self {
        Self {
            head_dim: in_u32(config.head_dim()),
            rows: in_u32(config.rows_of_shortest_segment())
                .min(Self::MOST_ROWS)
                .next_power_of_two(),
            mask: config.mask(),
        }
    }

    /// Segments that are longer than any kernel's tile.
    pub fn long(head_dim: u32) -> Self {
        Self {
            head_dim,
            rows: Self::MOST_ROWS,
            mask: Mask::Full,
        }
    }

    /// The key under which measurements of `pass` for these segments are remembered.
    pub(super) fn key(&self, pass: &str) -> String {
        let mask = match self.mask {
            Mask::Full => "full",
            Mask::Causal => "causal",
        };
        Fields::new()
            .with("head_dim", self.head_dim)
            .with("rows", self.rows)
            .with("mask", mask)
            .key(pass)
    }
}
