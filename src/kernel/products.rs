//! How the kernels of the backward that multiply matrices lay their work out.
//!
//! ```text
//! weights    p and ds of a window of rows and keys, as two matrices in a buffer of the backward's own
//! gradients  dq = ds k      dk = ds^T q      dv = p^T dout      of that window, joined with what other windows gave
//! ```
//! After the sweep the scores are computed once, not twice as where dq and dk, dv are passes of their own: 3.5 times the operations
//! of the forward are done, not 4.5. The windows bound the buffer, whatever the length of the sequence.

use crate::error::{Error, Result};
use crate::plan::{DeviceFacts, Pass, Processor};

/// Rows, and keys, of a window at most. Larger ones have fewer dispatches, smaller ones take less memory; other sides were not
/// measured.
const MOST_WINDOW_SIDE: u32 = 1024;

/// Bytes of weights at most, of all items, segments and heads in a dispatch.
const MOST_BYTES: u64 = 16 << 20;

/// Lanes of a subgroup, which is a workgroup.
const LANES: u32 = 8;

/// How these kernels lay their work out: a lane owns rows, and subgroup operations hand it the other factor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProductTile {
    /// Rows of a lane, 4 or 8.
    pub rows: u32,
    /// Elements of a sum in a step, 4 or 8.
    pub depth: u32,
}

impl ProductTile {
    /// The tile for heads of `head_dim` on a device with `facts`; src/kernel/matmul.rs has the figures.
    pub(crate) fn choose(head_dim: u32, facts: &DeviceFacts) -> Self {
        match facts.processor {
            Processor::Cpu {
                uniform_loads: true,
                ..
            } => Self {
                rows: 8,
                depth: if head_dim.is_multiple_of(8) { 8 } else { 4 },
            },
            _ => Self { rows: 4, depth: 4 },
        }
    }

    /// Rows of a workgroup, and keys of its weights.
    pub fn side(self) -> u32 {
        LANES * self.rows
    }

    /// Cells of four keys in the weights of a workgroup.
    fn key_cells(self) -> u32 {
        self.side() / 4
    }

    /// Cells of four columns of a gradient in a workgroup: all of them where they are few.
    fn column_cells(self, head_dim: u32) -> u32 {
        (head_dim / 4).next_multiple_of(2).min(self.key_cells())
    }

    /// Workgroups beside each other in a row of a gradient.
    pub(crate) fn column_tiles(self, head_dim: u32) -> u32 {
        (head_dim / 4).div_ceil(self.column_cells(head_dim))
    }

    /// Bytes of the weights of `rows` rows and `keys` keys. As in shared/backward_weights.wgsl: tiles that are written
    /// whole, rows that are an odd number of fours apart.
    pub(crate) fn weights_bytes(self, rows: u32, keys: u32) -> u64 {
        let padded = |length: u32| u64::from(length.next_multiple_of(self.side()));
        2 * padded(rows) * (padded(keys) + 4) * 4
    }

    /// Bytes of weights of a dispatch at most.
    pub(crate) fn most_bytes(facts: &DeviceFacts) -> u64 {
        MOST_BYTES
            .min(facts.max_binding_bytes)
            .min(facts.max_buffer_bytes)
    }

    /// Rows, and keys, of a window.
    pub(crate) fn window_side(self, facts: &DeviceFacts) -> u32 {
        let fits = |side: &u32| self.weights_bytes(*side, *side) <= Self::most_bytes(facts);
        let sides = (1..=MOST_WINDOW_SIDE / self.side()).map(|tiles| tiles * self.side());
        sides.rev().find(fits).unwrap_or(self.side())
    }

    /// Whether it is a tile, for heads of `head_dim`, with weights that a binding covers.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] when it is not, [`Error::BindingTooSmall`] when no binding covers the weights of one tile.
    pub(crate) fn check(self, head_dim: u32, facts: &DeviceFacts) -> Result<()> {
        let invalid = |what, given: u32, need| {
            Err(Error::InvalidConfig {
                what,
                given: given.to_string(),
                need,
            })
        };
        if ![4, 8].contains(&self.rows) {
            return invalid("rows of a lane of the kernel", self.rows, "4 or 8");
        }
        if ![4, 8].contains(&self.depth) || !head_dim.is_multiple_of(self.depth) {
            return invalid(
                "elements in a step of the kernel",
                self.depth,
                "4, or 8 where that divides the heads' elements",
            );
        }
        let bytes = self.weights_bytes(self.side(), self.side());
        if bytes > Self::most_bytes(facts) {
            return Err(Error::BindingTooSmall {
                what: "weights",
                requested_bytes: bytes,
                limit_bytes: Self::most_bytes(facts),
            });
        }
        Ok(())
    }

    /// Constants of the shaders of the weights, and of what else scores are for.
    pub(crate) fn constants_of_scores(self, head_dim: u32) -> Vec<(&'static str, u32)> {
        self.constants(head_dim, self.key_cells(), [0, 1])
    }

    /// Constants of the shader of a gradient: [`Pass::Dq`], [`Pass::Dk`] or [`Pass::Dv`].
    pub(crate) fn constants_of_gradient(
        self,
        head_dim: u32,
        pass: Pass,
    ) -> Vec<(&'static str, u32)> {
        let of = match pass {
            Pass::Dk => 1,
            Pass::Dv => 2,
            _ => 0,
        };
        let transposed = [u32::from(of > 0), 0];
        let mut constants = self.constants(head_dim, self.column_cells(head_dim), transposed);
        constants.push(("GRADIENT", of));
        constants
    }

    fn constants(
        self,
        head_dim: u32,
        cells: u32,
        transposed: [u32; 2],
    ) -> Vec<(&'static str, u32)> {
        vec![
            ("HEAD_DIM_VEC4", head_dim / 4),
            ("ROWS", self.rows),
            ("CELLS", cells),
            ("DEPTH", self.depth),
            ("SIDE", self.side()),
            ("TRANSPOSE_A", transposed[0]),
            ("TRANSPOSE_B", transposed[1]),
        ]
    }

    /// Numbers that functions of the shaders of scores are called for: fours of rows, pairs of cells, rows, cells.
    pub(crate) fn counts_of_scores(self) -> [u32; 4] {
        self.counts(self.key_cells())
    }

    /// The same of gradients.
    pub(crate) fn counts_of_gradient(self, head_dim: u32) -> [u32; 4] {
        self.counts(self.column_cells(head_dim))
    }

    fn counts(self, cells: u32) -> [u32; 4] {
        [self.rows / 4, cells / 2, self.rows, self.rows * cells]
    }
}
