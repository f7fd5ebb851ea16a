//! Results of models that are not finite.

use std::fmt;

use crate::element::DType;

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
