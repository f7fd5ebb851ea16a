//! The error for results of models that are not finite.

use std::fmt;

use crate::element::DType;

/// Which result of a model is not finite, and what is known of the cause.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NonFiniteResult {
    /// Name of the result, as in the output.
    pub result: &'static str,
    /// Number of the slide or image in the call, counted from 0.
    pub item: usize,
    /// Number of its values that are not finite.
    pub count: usize,
    /// Number of all its values.
    pub of: usize,
    /// Where such values arise, as far as the requested states and embeddings show.
    pub origin: Option<Origin>,
    /// Type of the activations.
    pub activations: DType,
}

/// The first state of a model with values that are not finite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Origin {
    /// Number of the slide or image in the call, counted from 0.
    pub item: usize,
    /// The state: 0 is the input of the first layer, n the output of n layers.
    pub state: usize,
    /// The first token with such values; `None` if single tokens were not checked.
    pub token: Option<Token>,
    /// Number of tokens with such values; 0 if single tokens were not checked.
    pub tokens: usize,
}

/// A token of a model's input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    /// The CLS token of a slide.
    Cls,
    /// A tile of a slide, by its number in the input, counted from 0.
    Tile(usize),
    /// A patch of an image, counted from 0, row by row.
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

/// Likely cause of values that are not finite, and what to do about it.
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
