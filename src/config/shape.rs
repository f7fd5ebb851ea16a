//! The shape of one call.

use super::{Branch, CallOptions, DilatedAttentionConfig, MAX_TOKENS, Mask, Padding};
use crate::error::{Error, Result};

/// The shape of one call: how many sequences, how long, and how much of each is real.
///
/// Queries and keys are of one sequence unless the shape is made by [`cross`](Self::cross).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AttentionShape {
    batch: usize,
    seq_len: usize,
    key_len: usize,
    pub(super) options: CallOptions,
}

impl AttentionShape {
    /// `batch` sequences of `seq_len` tokens each. Either may be 0: the call then computes nothing.
    ///
    /// # Errors
    /// [`Error::InvalidShape`] when `seq_len` exceeds [`MAX_TOKENS`], or `batch` 32 bits.
    pub fn new(batch: usize, seq_len: usize) -> Result<Self> {
        Self::of_call(batch, seq_len, seq_len, CallOptions::new())
    }

    /// `seq_len` queries over `key_len` keys and values of another sequence, for each of `batch` items. Only undilated
    /// attention over everything is defined then: one branch of rate 1, at least as long as both sequences, no causal mask
    /// and no zero keys; see [`DilatedAttentionConfig::dense`].
    ///
    /// # Errors
    /// As [`new`](Self::new); [`Error::InvalidShape`] when `key_len` exceeds [`MAX_TOKENS`].
    pub fn cross(batch: usize, seq_len: usize, key_len: usize) -> Result<Self> {
        Self::of_call(batch, seq_len, key_len, CallOptions::cross())
    }

    /// Item `i` has only `valid_lens[i]` tokens; the call then equals separate calls of these lengths, and the rows
    /// behind them are 0 and uncovered.
    ///
    /// # Errors
    /// [`Error::InvalidShape`] when there is not one length per item, or one exceeds `seq_len`.
    pub fn with_valid_lens(self, valid_lens: &[usize]) -> Result<Self> {
        let options = self.options.with_valid_lens(valid_lens);
        Self { options, ..self }.checked()
    }

    /// Of item `i` only the first `valid_lens[i]` keys exist; for shapes made by [`cross`](Self::cross).
    ///
    /// # Errors
    /// [`Error::InvalidShape`] when the shape has no keys of its own, there is not one length per item, or one exceeds the
    /// number of keys.
    pub fn with_valid_key_lens(self, valid_lens: &[usize]) -> Result<Self> {
        let options = self.options.with_valid_key_lens(valid_lens);
        Self { options, ..self }.checked()
    }

    /// The shape of a call with such options.
    ///
    /// # Errors
    /// As all of the above.
    pub(super) fn of_call(
        batch: usize,
        seq_len: usize,
        key_len: usize,
        options: CallOptions,
    ) -> Result<Self> {
        let shape = Self {
            batch,
            seq_len,
            key_len,
            options,
        };
        shape.checked()
    }

    fn checked(self) -> Result<Self> {
        let invalid = |what: &'static str, given: String, need: String| {
            let what = what.into();
            Err(Error::InvalidShape { what, given, need })
        };
        if u32::try_from(self.batch).is_err() {
            let need = format!("at most {}, in several calls", u32::MAX);
            return invalid("batch", self.batch.to_string(), need);
        }
        for (what, len) in [("seq_len", self.seq_len), ("key_len", self.key_len)] {
            if len > MAX_TOKENS {
                return invalid(what, len.to_string(), format!("at most {MAX_TOKENS}"));
            }
        }
        let options = &self.options;
        if options.valid_key_lens.is_some() && !options.is_cross {
            return invalid(
                "valid_key_lens",
                "a shape whose keys are those of the queries' sequence".to_owned(),
                "a shape made by AttentionShape::cross or CallOptions::cross, or with_valid_lens"
                    .to_owned(),
            );
        }
        for (what, lens, most) in [
            ("valid_lens", &options.valid_lens, self.seq_len),
            ("valid_key_lens", &options.valid_key_lens, self.key_len),
        ] {
            let Some(lens) = lens else {
                continue;
            };
            if lens.len() != self.batch {
                let need = format!("{}, one per batch item", self.batch);
                return invalid(what, format!("{} lengths", lens.len()), need);
            }
            if let Some(item) = lens.iter().position(|len| *len > most) {
                let given = format!("{} for item {item}", lens[item]);
                return invalid(what, given, format!("at most the sequence length {most}"));
            }
        }
        Ok(self)
    }

    /// Number of sequences, B.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Tokens per sequence in the tensors of queries and outputs, N.
    pub fn seq_len(&self) -> usize {
        self.seq_len
    }

    /// Tokens per sequence in the tensors of keys and values.
    pub fn key_len(&self) -> usize {
        self.key_len
    }

    /// Whether keys and values are of another sequence than the queries.
    pub fn is_cross(&self) -> bool {
        self.options.is_cross
    }

    /// Tokens of item `item` that are real.
    ///
    /// # Panics
    /// When `item` is not below [`batch`](Self::batch).
    pub fn valid_len(&self, item: usize) -> usize {
        assert!(item < self.batch, "item {item} of {}", self.batch);
        let lens = self.options.valid_lens.as_ref();
        lens.map_or(self.seq_len, |lens| lens[item])
    }

    /// Keys of item `item` that are real.
    ///
    /// # Panics
    /// When `item` is not below [`batch`](Self::batch).
    pub fn valid_key_len(&self, item: usize) -> usize {
        if !self.is_cross() {
            return self.valid_len(item);
        }
        assert!(item < self.batch, "item {item} of {}", self.batch);
        let lens = self.options.valid_key_lens.as_ref();
        lens.map_or(self.key_len, |lens| lens[item])
    }

    /// Whether `config` is defined for this shape.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] when queries and keys are of two sequences and it is not dense attention.
    pub(crate) fn check_config(&self, config: &DilatedAttentionConfig) -> Result<()> {
        let longest = self.seq_len.max(self.key_len);
        let dense = matches!(
            config.branches(),
            [Branch { dilation_rate: 1, segment_length }] if *segment_length >= longest
        );
        let dense = dense && config.mask() == Mask::Full && config.padding() == Padding::Masked;
        if self.is_cross() && !dense {
            return Err(Error::InvalidConfig {
                what: "attention between two sequences",
                given: config.to_string(),
                need: "one branch of rate 1 at least as long as both, full mask, masked padding \
                       (DilatedAttentionConfig::dense)",
            });
        }
        Ok(())
    }
}
