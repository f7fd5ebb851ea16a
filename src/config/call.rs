//! What a call of attention says beside its tensors.

use super::{AttentionShape, UNEQUAL_LENGTHS};
use crate::error::{Error, Result};

/// What a call of attention says beside its tensors: how much of each item is real, and whether keys are of another sequence.
///
/// ```
/// use dilated_attention::CallOptions;
/// // The second of two items has 100 tokens.
/// let options = CallOptions::new().with_valid_lens(&[128, 100]);
/// # drop(options);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct CallOptions {
    pub(super) valid_lens: Option<Vec<usize>>,
    pub(super) valid_key_lens: Option<Vec<usize>>,
    pub(super) is_cross: bool,
}

impl CallOptions {
    /// All tokens are real, and keys and values are of the queries' sequence.
    pub fn new() -> Self {
        Self::default()
    }

    /// Keys and values are of another sequence, of a length of its own; see [`AttentionShape::cross`] for which configurations
    /// that is defined.
    pub fn cross() -> Self {
        Self {
            is_cross: true,
            ..Self::default()
        }
    }

    /// Item `i` has only `valid_lens[i]` tokens; see [`AttentionShape::with_valid_lens`].
    pub fn with_valid_lens(self, valid_lens: &[usize]) -> Self {
        Self {
            valid_lens: Some(valid_lens.to_vec()),
            ..self
        }
    }

    /// Of item `i` only the first `valid_lens[i]` keys exist; for [`cross`](Self::cross) attention.
    pub fn with_valid_key_lens(self, valid_lens: &[usize]) -> Self {
        Self {
            valid_key_lens: Some(valid_lens.to_vec()),
            ..self
        }
    }

    /// The shape of a call with queries and keys of these shapes, (B, N, H, D) each.
    ///
    /// # Errors
    /// [`Error::InvalidShape`] for what has no four dimensions, keys of another length than the queries without
    /// [`cross`](Self::cross), and lengths that do not fit.
    pub(crate) fn shape_of(&self, q: &[usize], k: &[usize]) -> Result<AttentionShape> {
        let lens = |what: &'static str, shape: &[usize]| match *shape {
            [batch, len, _, _] => Ok([batch, len]),
            _ => Err(Error::InvalidShape {
                what: what.into(),
                given: format!("{shape:?}"),
                need: "(batch, tokens, heads, elements)".to_owned(),
            }),
        };
        let ([batch, seq_len], [_, key_len]) = (lens("q", q)?, lens("k", k)?);
        if !self.is_cross && key_len != seq_len {
            return Err(Error::InvalidShape {
                what: "k".into(),
                given: format!("{key_len} tokens"),
                need: format!(
                    "{seq_len}, as q has ({UNEQUAL_LENGTHS}; CallOptions::cross is for keys of another sequence)"
                ),
            });
        }
        AttentionShape::of_call(batch, seq_len, key_len, self.clone())
    }
}

/// The options of a call of such a shape.
impl From<&AttentionShape> for CallOptions {
    fn from(shape: &AttentionShape) -> Self {
        shape.options.clone()
    }
}
