//! What the choice of an attention kernel depends on, of a configuration.

use super::Fields;
use crate::config::{DilatedAttentionConfig, Mask, in_u32};

/// Heads and segments of a configuration, as far as a kernel's tile depends on them.
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
    /// Twice as many as the largest tile of a kernel has.
    pub const MOST_ROWS: u32 = 2048;

    /// Those of a configuration.
    pub fn of(config: &DilatedAttentionConfig) -> Self {
        Self {
            head_dim: in_u32(config.head_dim()),
            rows: in_u32(config.rows_of_shortest_segment())
                .min(Self::MOST_ROWS)
                .next_power_of_two(),
            mask: config.mask(),
        }
    }

    /// Long ones.
    pub fn long(head_dim: u32) -> Self {
        Self {
            head_dim,
            rows: Self::MOST_ROWS,
            mask: Mask::Full,
        }
    }

    /// What is remembered of them.
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
