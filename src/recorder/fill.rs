//! Fills tensors with one value.

use super::Recorder;
use crate::device::{ByteRange, word_windows};
use crate::error::{Error, Result};
use crate::kernels::fill::{Fill, FillParams, WORDS_PER_WORKGROUP};
use crate::kernels::fold_grid;
use crate::tensor::Tensor;

impl Recorder {
    /// Records that every 4-byte word of the bytes `range` of `tensor` (both ends multiples of 4) is set to `value`.
    pub(super) fn fill(&mut self, tensor: &Tensor, range: ByteRange, value: u32) -> Result<()> {
        let caps = self.machine().caps().clone();
        let windows = word_windows(range, tensor.part_bytes(), &caps).collect::<Vec<_>>();
        for (window, skip) in windows {
            // Bindings are below 2^32 bytes, so their words fit in 32 bits.
            let num_words = (window.size / 4) as u32 - skip;
            let num_workgroups = num_words.div_ceil(WORDS_PER_WORKGROUP);
            let Some(grid) = fold_grid(num_workgroups, caps.max_workgroups_per_dimension) else {
                return Err(Error::SizeOverflow {
                    what: "workgroups of one fill".into(),
                    given: num_workgroups.to_string(),
                });
            };
            let params = FillParams {
                first_word: skip,
                num_words,
                value,
                first_workgroup: 0,
                grid_width: grid[0],
            };
            self.dispatch(Fill, &[(tensor, window)], &params, grid)?;
        }
        Ok(())
    }
}
