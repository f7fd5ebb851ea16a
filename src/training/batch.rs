//! Batches of sequences with labels.

use crate::config::{AttentionShape, UNEQUAL_LENGTHS};
use crate::error::{Error, Result};
use crate::ops::IGNORED_LABEL;

/// Sequences of one padded length, with a label for each token.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    shape: AttentionShape,
    tokens: Vec<u32>,
    labels: Vec<u32>,
}

impl Batch {
    /// Sequences of `shape` with a label for each token: a token of the vocabulary, or
    /// [`IGNORED_LABEL`](crate::ops::IGNORED_LABEL). Labels of tokens behind an item's
    /// [length](AttentionShape::with_valid_lens) are ignored.
    ///
    /// # Errors
    /// [`Error::InvalidShape`] for a shape without tokens or of two sequences; [`Error::LengthMismatch`] when there are more or
    /// fewer of either than the shape has tokens.
    pub fn new(shape: AttentionShape, tokens: Vec<u32>, mut labels: Vec<u32>) -> Result<Self> {
        if shape.batch() == 0 || shape.seq_len() == 0 || shape.is_cross() {
            return Err(Error::InvalidShape {
                what: "shape of a batch".into(),
                given: match shape.is_cross() {
                    true => "one of queries and keys of two sequences".to_owned(),
                    false => format!("{} x {} tokens", shape.batch(), shape.seq_len()),
                },
                need: "AttentionShape::new of at least one sequence of at least one token"
                    .to_owned(),
            });
        }
        let expected = shape.batch() as u64 * shape.seq_len() as u64;
        for (label, given) in [("tokens", &tokens), ("labels", &labels)] {
            if given.len() as u64 != expected {
                return Err(Error::LengthMismatch {
                    label: label.into(),
                    given: given.len() as u64,
                    expected,
                });
            }
        }
        for (item, labels) in (0..).zip(labels.chunks_mut(shape.seq_len())) {
            labels[shape.valid_len(item)..].fill(IGNORED_LABEL);
        }
        Ok(Self {
            shape,
            tokens,
            labels,
        })
    }

    /// Sequences of one length for next-token prediction: the label of each token is the token after it; the last has no label.
    ///
    /// # Errors
    /// [`Error::InvalidShape`] without sequences, with sequences of fewer than two tokens or of different lengths.
    pub fn next_tokens(sequences: &[&[u32]]) -> Result<Self> {
        let len = sequences.first().map_or(0, |sequence| sequence.len());
        let other = sequences.iter().find(|sequence| sequence.len() != len);
        if len < 2 || other.is_some() {
            return Err(Error::InvalidShape {
                what: "sequences of a batch".into(),
                given: match other {
                    None if sequences.is_empty() => "none".to_owned(),
                    None => format!("{} of {len} tokens", sequences.len()),
                    Some(other) => format!("some of {len} tokens and some of {}", other.len()),
                },
                need: format!(
                    "one or more, all of the same length, of two tokens or more ({UNEQUAL_LENGTHS}: see Batch::new)"
                ),
            });
        }
        let shape = AttentionShape::new(sequences.len(), len - 1)?;
        let gather = |range: std::ops::Range<usize>| -> Vec<u32> {
            sequences
                .iter()
                .flat_map(|sequence| &sequence[range.clone()])
                .copied()
                .collect()
        };
        Self::new(shape, gather(0..len - 1), gather(1..len))
    }

    /// Batch items and their lengths.
    pub fn shape(&self) -> &AttentionShape {
        &self.shape
    }

    /// Tokens, item after item.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Labels, item after item.
    pub fn labels(&self) -> &[u32] {
        &self.labels
    }

    /// Labels that count.
    pub fn num_labels(&self) -> u64 {
        let counts = |label: &&u32| **label != IGNORED_LABEL;
        self.labels.iter().filter(counts).count() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_that_are_no_batch_are_an_error_that_says_why() {
        let cases: [(&[&[u32]], &str); 3] = [
            (&[], "none"),
            (&[&[1], &[2]], "2 of 1 tokens"),
            (
                &[&[1, 2], &[3, 4], &[5, 6, 7]],
                "some of 2 tokens and some of 3",
            ),
        ];
        for (sequences, expected) in cases {
            let error = Batch::next_tokens(sequences).expect_err("no batch");
            assert!(
                matches!(&error, Error::InvalidShape { given, .. } if given == expected),
                "{error}"
            );
        }
    }
}
