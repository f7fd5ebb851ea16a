//! Checks that results are finite, and finds where values that are not arise.

use crate::config::AttentionShape;
use crate::device::DType;
use crate::error::{Error, NonFiniteResult, Origin, Result, Token};

/// The part of a result that belongs to one batch item.
#[derive(Clone, Copy, Debug)]
pub struct ResultPart<'a> {
    /// Name of the result, as in the output.
    pub result: &'static str,
    /// Number of the slide or image.
    pub item: usize,
    /// The values.
    pub values: &'a [f32],
    /// Where in the model the values come from.
    pub of: PartOf,
}

/// Where in a model values come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartOf {
    /// The end of the run.
    End,
    /// A state, without a relation to single tokens.
    State(usize),
    /// The tokens of a state, one row for each.
    Tokens(usize),
}

/// The parts of a result that has the same number of values for each of `items`.
pub(super) fn by_item<'a>(
    result: &'static str,
    of: PartOf,
    values: &'a [f32],
    items: usize,
) -> impl Iterator<Item = ResultPart<'a>> {
    let size = (values.len() / items.max(1)).max(1);
    let items = values.chunks(size).enumerate();
    items.map(move |(item, values)| ResultPart {
        result,
        item,
        values,
        of,
    })
}

/// The parts of a result that has a row for each token of `shape`. Rows after the end of an item are left out.
pub(super) fn by_token<'a>(
    result: &'static str,
    of: PartOf,
    values: &'a [f32],
    shape: &AttentionShape,
) -> impl Iterator<Item = ResultPart<'a>> {
    let (items, tokens) = (shape.batch(), shape.seq_len());
    let width = values.len() / (items * tokens).max(1);
    by_item(result, of, values, items).map(move |part| {
        let own = shape.valid_len(part.item) * width;
        ResultPart {
            values: &part.values[..own.min(part.values.len())],
            ..part
        }
    })
}

/// Checks that all of `results` are finite.
///
/// # Errors
/// [`Error::NonFiniteResult`] with the first that is not, and where such values arise as far as the results show.
pub(super) fn check(
    results: &[ResultPart<'_>],
    width: usize,
    token: fn(usize) -> Token,
    activations: DType,
) -> Result<()> {
    let count = |values: &[f32]| values.iter().filter(|value| !value.is_finite()).count();
    let mut counted = results.iter().map(|part| (part, count(part.values)));
    let Some((part, count)) = counted.find(|(_, count)| *count > 0) else {
        return Ok(());
    };
    Err(Error::NonFiniteResult(Box::new(NonFiniteResult {
        result: part.result,
        item: part.item,
        count,
        of: part.values.len(),
        origin: origin(results.iter().copied(), width, token),
        activations,
    })))
}

/// The first state with a value that is not finite, as far as `results` show. `token` names the token of a row of `width` elements.
pub(super) fn origin<'a>(
    results: impl IntoIterator<Item = ResultPart<'a>>,
    width: usize,
    token: fn(usize) -> Token,
) -> Option<Origin> {
    let origins = results.into_iter().filter_map(|part| {
        let (first, rows) = bad_rows(part.values, width)?;
        let (state, token, tokens) = match part.of {
            PartOf::End => return None,
            PartOf::State(state) => (state, None, 0),
            PartOf::Tokens(state) => (state, Some(token(first)), rows),
        };
        let item = part.item;
        Some(Origin {
            item,
            state,
            token,
            tokens,
        })
    });
    // For the same state, an origin that names a token comes first.
    origins.min_by_key(|origin| (origin.state, origin.token.is_none(), origin.item))
}

/// The first row of `width` elements with a value that is not finite, and the number of such rows.
fn bad_rows(values: &[f32], width: usize) -> Option<(usize, usize)> {
    let is_bad = |row: &[f32]| row.iter().any(|value| !value.is_finite());
    let rows = values.chunks(width.max(1)).enumerate();
    let mut bad = rows.filter(|(_, row)| is_bad(row));
    let (first, _) = bad.next()?;
    Some((first, 1 + bad.count()))
}

#[cfg(test)]
mod tests {
    use super::{PartOf, by_item, by_token, check};
    use crate::config::AttentionShape;
    use crate::device::DType;
    use crate::error::Token;

    /// Two images of three patches of two elements, with features and one state.
    #[test]
    fn a_result_that_is_not_finite_names_item_and_token() {
        let shape = AttentionShape::new(2, 3).expect("valid");
        let (mut features, mut state) = (vec![0.0; 2 * 2], vec![0.0; 2 * 3 * 2]);
        let told = |features: &[f32], state: &[f32], shape: &AttentionShape| {
            let features = by_item("features", PartOf::End, features, 2);
            let states = by_token("states", PartOf::Tokens(1), state, shape);
            let results: Vec<_> = features.chain(states).collect();
            check(&results, 2, Token::Patch, DType::F32).map_err(|error| error.to_string())
        };
        told(&features, &state, &shape).expect("finite");
        features[2] = f32::NAN;
        let alone = told(&features, &state, &shape).expect_err("told");
        let expected = "1 of the 2 values of features of item 1 are not finite:";
        assert!(alone.starts_with(expected), "{alone}");
        // Patches 1 and 2 of the second image.
        state[4 * 2..].fill(f32::INFINITY);
        let with_state = told(&features, &state, &shape).expect_err("told");
        let place = "patch 1 and 1 more tokens in the output of layer 0 (item 1 of the batch)";
        assert!(with_state.contains(place), "{with_state}");
        // Now the second image has only one patch.
        let shorter = shape.with_valid_lens(&[3, 1]).expect("valid");
        let without = told(&features, &state, &shorter).expect_err("told");
        assert_eq!(without, alone);
    }
}
