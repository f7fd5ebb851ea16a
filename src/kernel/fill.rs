//! Records the `fill` kernel.

use super::{FillParams, Kernel, fold_grid};
use crate::error::{Error, Result};
use crate::plan::{ByteRange, word_windows};
use crate::recorder::Recorder;
use crate::tensor::Tensor;

/// Words that one workgroup fills; the product of the two constants of the shader.
const WORDS_PER_WORKGROUP: u32 = 64 * 16;

/// Records that the bytes `range` of `tensor` (both ends multiples of 4) hold `value` in every word.
pub(crate) fn record(
    recorder: &mut Recorder,
    tensor: &Tensor,
    range: ByteRange,
    value: u32,
) -> Result<()> {
    let facts = recorder.context().facts().clone();
    for (window, skip) in word_windows(range, &facts) {
        // Bindings are below 2^32 bytes, so their words fit in 32 bits.
        let num_words = (window.size / 4) as u32 - skip;
        let num_workgroups = num_words.div_ceil(WORDS_PER_WORKGROUP);
        let Some(grid) = fold_grid(num_workgroups, facts.max_workgroups_per_dimension) else {
            return Err(Error::SizeOverflow {
                what: "workgroups of one fill",
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
        recorder.dispatch(Kernel::Fill, &[(tensor, window)], &params, grid)?;
    }
    Ok(())
}
