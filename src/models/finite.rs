//! Whether results are finite, and where values that are not arise.

use std::fmt;

use crate::device::DType;
use crate::error::{Error, Result};

/// Which result of a model is not finite, and what is known of the cause.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NonFiniteResult {
    /// The result, as the output names it.
    pub result: &'static str,
    /// Of which slide or image of the call, from 0.
    pub item: usize,
    /// Its values that are not finite.
    pub count: usize,
    /// All its values.
    pub of: usize,
    /// Where they arise, as far as the states and embeddings of layers that were asked for tell.
    pub origin: Option<Origin>,
    /// Type of the activations.
    pub activations: DType,
}

/// The first state that holds values which are not finite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Origin {
    /// The slide or image of the call, from 0.
    pub item: usize,
    /// The state: 0 is the input of the first layer, n the output of n layers.
    pub state: usize,
    /// The first such token in it, where tokens were looked at.
    pub token: Option<Token>,
    /// Such tokens in it; 0 where tokens were not looked at.
    pub tokens: usize,
}

/// A token of a model's input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    /// That of the whole slide.
    Cls,
    /// A tile of a slide, from 0, as it was given.
    Tile(usize),
    /// A patch of an image, from 0, row by row.
    Patch(usize),
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cls => f.write_str("the CLS token"),
            Self::Tile(tile) => write!(f, "tile {tile}"),
            Self::Patch(patch) => write!(f, "patch {patch}"),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(token) = self.token {
            write!(f, "{token} ")?;
            if self.tokens > 1 {
                write!(f, "and {} more tokens ", self.tokens - 1)?;
            }
        }
        match self.state {
            0 => f.write_str("in the input of the first layer")?,
            state => write!(f, "in the output of layer {}", state - 1)?,
        }
        match self.item {
            0 => Ok(()),
            item => write!(f, " (item {item} of the batch)"),
        }
    }
}

impl fmt::Display for NonFiniteResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            result,
            item,
            count,
            of,
            ..
        } = self;
        write!(
            f,
            "{count} of the {of} values of {result} of item {item} are not finite"
        )?;
        if let Some(origin) = self.origin {
            write!(f, "; the first are {origin}")?;
        }
        f.write_str(cause(self.activations))
    }
}

/// What makes values infinite, and what to do.
fn cause(activations: DType) -> &'static str {
    match activations {
        DType::F16 => {
            ": activations are f16, which holds at most 65504; take bf16 or f32, or leave out what is that large"
        }
        _ => {
            ": weights or inputs are too large, or not finite; Context::set_check_finite looks for those in weights"
        }
    }
}

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
