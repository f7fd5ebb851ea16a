//! Whether results are finite, and where values that are not arise.

use crate::device::DType;
use crate::error::{Error, NonFiniteResult, Origin, Result};

/// Whether `results`, each a name, the item it is of and values, are finite.
///
/// # Errors
/// [`Error::NonFiniteResult`], about the first that is not, with what `origin` says.
pub(super) fn check<'a>(
    results: impl IntoIterator<Item = (&'static str, usize, &'a [f32])>,
    origin: impl FnOnce() -> Option<Origin>,
    activations: DType,
) -> Result<()> {
    let count = |values: &[f32]| values.iter().filter(|value| !value.is_finite()).count();
    let counted = results
        .into_iter()
        .map(|(result, item, values)| (result, item, count(values), values.len()));
    let Some((result, item, count, of)) = counted.into_iter().find(|(_, _, count, _)| *count > 0)
    else {
        return Ok(());
    };
    Err(Error::NonFiniteResult(Box::new(NonFiniteResult {
        result,
        item,
        count,
        of,
        origin: origin(),
        activations,
    })))
}

/// The first of the rows of `width` elements that is not finite, and the number of such rows.
pub(super) fn rows(values: &[f32], width: usize) -> Option<(usize, usize)> {
    let is_bad = |row: &[f32]| row.iter().any(|value| !value.is_finite());
    let mut bad = (0..)
        .zip(values.chunks(width.max(1)))
        .filter(|(_, row)| is_bad(row));
    let (first, _) = bad.next()?;
    Some((first, 1 + bad.count()))
}
