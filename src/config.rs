//! What to compute: the options of dilated attention, as plain data.
//!
//! A [`DilatedAttentionConfig`] can only be built valid, so everything downstream (plan, oracle, kernels) may rely on
//! its invariants: at least one branch, every segment length and dilation rate at least 1, a supported head size.
//! Batch, lengths and keys of another sequence belong to one call: to its tensors and [`CallOptions`], or, for plans and models, to an
//! [`AttentionShape`].
//!
//! Source of the semantics: LongNet (Ding et al. 2023) as implemented by microsoft/torchscale,
//! `torchscale/component/dilated_attention.py`; the partitioned variant is dilated-attention-pytorch's.

use std::fmt;

use crate::error::{Error, Result};

/// Largest supported head size, in elements.
pub const MAX_HEAD_DIM: usize = 256;

/// Longest sequence, in tokens: token and row indices, and sums of two of them, fit in the 32 bits a shader has.
pub const MAX_TOKENS: usize = (1 << 31) - 1;

/// One branch: attention inside segments of `segment_length` tokens, over every `dilation_rate`-th token of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Branch {
    /// Tokens in a segment; cut to the sequence length when that is smaller.
    pub segment_length: usize,
    /// Distance in tokens between two rows of the branch.
    pub dilation_rate: usize,
}

/// Which keys a query may see inside its segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mask {
    /// All of them.
    #[default]
    Full,
    /// Those at or before the query.
    Causal,
}

/// How the offset of a head inside a dilated segment follows from its number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum HeadOffsets {
    /// Contiguous groups of heads share an offset: `floor(h / ceil(H / r))` (torchscale).
    #[default]
    Blocked,
    /// Neighbouring heads take neighbouring offsets: `h mod r` (the paper's formula).
    RoundRobin,
}

/// What stands where a segment has fewer tokens than its length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Padding {
    /// Nothing: a key that is not a token does not exist.
    #[default]
    Masked,
    /// Keys of score 0 and value 0 (torchscale, and what weights trained with it expect).
    ZeroKeys,
}

/// Where the rows of a branch are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum OutputRows {
    /// At the token of the query.
    #[default]
    Aligned,
    /// Segment `s` starts at `s * ceil(w / r) * r`: rows move when `w` is not a multiple of `r`, and rows whose query is
    /// padding ("phantom rows": a zero query) are written too (torchscale).
    Torchscale,
}

/// How the gradient treats the weights that mix the branches. No forward depends on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum MixGradient {
    /// The true gradient.
    #[default]
    Exact,
    /// Mixing weights are constants (torchscale's autograd).
    DetachedMix,
}

/// Which heads take part in which branch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Heads {
    /// Every head in every branch.
    #[default]
    EveryBranch,
    /// Heads are cut into one contiguous group a branch, `H / G` heads each and one more for the first `H mod G`; group
    /// `i` sees branch `i` alone, at offset `i mod r_i`, and the result is divided by the number of branches `G`
    /// (dilated-attention-pytorch).
    Partitioned,
}

/// The options of dilated attention. Always valid; see the [module](self) documentation.
///
/// ```
/// use dilated_attention::{DilatedAttentionConfig, Mask};
/// let config = DilatedAttentionConfig::new(8, 64, &[2048, 8192], &[1, 4])?.with_mask(Mask::Causal);
/// assert_eq!(config.embed_dim(), 512);
/// assert!(DilatedAttentionConfig::new(8, 66, &[2048], &[1]).is_err());
/// # Ok::<(), dilated_attention::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct DilatedAttentionConfig {
    num_heads: usize,
    head_dim: usize,
    branches: Vec<Branch>,
    mask: Mask,
    head_offsets: HeadOffsets,
    padding: Padding,
    output_rows: OutputRows,
    gradient: MixGradient,
    heads: Heads,
    softmax_scale: f32,
}

impl DilatedAttentionConfig {
    /// Configures `num_heads` heads of `head_dim` elements and one branch per pair of the two lists, in their order.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] when a list is empty, the lists differ in length, a number is 0, `head_dim` is not a
    /// multiple of 4 in 4..=256, or `num_heads * head_dim` does not fit in 32 bits.
    pub fn new(
        num_heads: usize,
        head_dim: usize,
        segment_lengths: &[usize],
        dilation_rates: &[usize],
    ) -> Result<Self> {
        let invalid = |what, given: String, need| Err(Error::InvalidConfig { what, given, need });
        if num_heads == 0 {
            return invalid("num_heads", "0".into(), "at least 1");
        }
        if head_dim == 0 || !head_dim.is_multiple_of(4) || head_dim > MAX_HEAD_DIM {
            return invalid(
                "head_dim",
                head_dim.to_string(),
                "a multiple of 4 from 4 to 256; pad the head with zeros and pass softmax_scale otherwise",
            );
        }
        let embed_dim = num_heads.checked_mul(head_dim);
        if embed_dim.is_none_or(|embed_dim| u32::try_from(embed_dim).is_err()) {
            return invalid(
                "num_heads * head_dim",
                format!("{num_heads} * {head_dim}"),
                "a product below 2^32",
            );
        }
        if segment_lengths.len() != dilation_rates.len() {
            return invalid(
                "number of branches",
                format!(
                    "{} segment lengths and {} dilation rates",
                    segment_lengths.len(),
                    dilation_rates.len()
                ),
                "one dilation rate per segment length",
            );
        }
        if segment_lengths.is_empty() {
            return invalid("number of branches", "0".into(), "at least 1");
        }
        let mut branches = Vec::with_capacity(segment_lengths.len());
        for (index, (&segment_length, &dilation_rate)) in
            segment_lengths.iter().zip(dilation_rates).enumerate()
        {
            if segment_length == 0 || dilation_rate == 0 {
                return invalid(
                    "branch",
                    format!(
                        "branch {index} with segment length {segment_length} and dilation rate {dilation_rate}"
                    ),
                    "both at least 1",
                );
            }
            if dilation_rate > MAX_TOKENS {
                return invalid(
                    "branch",
                    format!("branch {index} with dilation rate {dilation_rate}"),
                    "a dilation rate of at most 2^31 - 1, so that row indices fit in 32 bits",
                );
            }
            branches.push(Branch {
                segment_length,
                dilation_rate,
            });
        }
        Ok(Self {
            num_heads,
            head_dim,
            branches,
            mask: Mask::default(),
            head_offsets: HeadOffsets::default(),
            padding: Padding::default(),
            output_rows: OutputRows::default(),
            gradient: MixGradient::default(),
            heads: Heads::default(),
            softmax_scale: 1.0 / (head_dim as f32).sqrt(),
        })
    }

    /// The same options over other branches.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_branches(
        self,
        segment_lengths: &[usize],
        dilation_rates: &[usize],
    ) -> Result<Self> {
        let other = Self::new(
            self.num_heads,
            self.head_dim,
            segment_lengths,
            dilation_rates,
        )?;
        Ok(Self {
            branches: other.branches,
            ..self
        })
    }

    /// The same options over `num_heads` heads of `head_dim` elements, with the softmax scale of that size.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_size(self, num_heads: usize, head_dim: usize) -> Result<Self> {
        let branches = self.branches.iter();
        let (lengths, rates): (Vec<_>, Vec<_>) = branches
            .map(|branch| (branch.segment_length, branch.dilation_rate))
            .unzip();
        let other = Self::new(num_heads, head_dim, &lengths, &rates)?;
        Ok(Self {
            num_heads,
            head_dim,
            softmax_scale: other.softmax_scale,
            ..self
        })
    }

    /// Ordinary attention over whole sequences: one branch of rate 1 that spans the longest sequence there can be.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn dense(num_heads: usize, head_dim: usize) -> Result<Self> {
        Self::new(num_heads, head_dim, &[MAX_TOKENS], &[1])
    }

    /// Everything as torchscale does it: blocked head offsets, zero keys, its output rows, detached mixing weights in
    /// the gradient. Weights trained with torchscale (LongNet, GigaPath, LongViT) need this.
    pub fn with_torchscale(self) -> Self {
        self.with_head_offsets(HeadOffsets::Blocked)
            .with_padding(Padding::ZeroKeys)
            .with_output_rows(OutputRows::Torchscale)
            .with_gradient(MixGradient::DetachedMix)
    }

    /// Sets the mask.
    pub fn with_mask(mut self, mask: Mask) -> Self {
        self.mask = mask;
        self
    }

    /// Sets how head offsets follow from head numbers.
    pub fn with_head_offsets(mut self, head_offsets: HeadOffsets) -> Self {
        self.head_offsets = head_offsets;
        self
    }

    /// Sets what stands where a segment lacks tokens.
    pub fn with_padding(mut self, padding: Padding) -> Self {
        self.padding = padding;
        self
    }

    /// Sets where rows are written.
    pub fn with_output_rows(mut self, output_rows: OutputRows) -> Self {
        self.output_rows = output_rows;
        self
    }

    /// Sets how the gradient treats the mixing weights.
    pub fn with_gradient(mut self, gradient: MixGradient) -> Self {
        self.gradient = gradient;
        self
    }

    /// Sets which heads take part in which branch.
    pub fn with_heads(mut self, heads: Heads) -> Self {
        self.heads = heads;
        self
    }

    /// Sets the factor on the scores `q . k`; `1 / sqrt(head_dim)` unless set. Any finite number, 0 and negative ones too.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] when it is not finite.
    pub fn with_softmax_scale(mut self, softmax_scale: f32) -> Result<Self> {
        if !softmax_scale.is_finite() {
            return Err(Error::InvalidConfig {
                what: "softmax_scale",
                given: softmax_scale.to_string(),
                need: "a finite number",
            });
        }
        self.softmax_scale = softmax_scale;
        Ok(self)
    }

    /// Number of heads, H.
    pub fn num_heads(&self) -> usize {
        self.num_heads
    }

    /// Elements in one head, D.
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// `num_heads * head_dim`, E.
    pub fn embed_dim(&self) -> usize {
        self.num_heads * self.head_dim
    }

    /// The branches in the order given.
    pub fn branches(&self) -> &[Branch] {
        &self.branches
    }

    /// Rows of the shortest segment: `ceil(segment_length / dilation_rate)`, the least over the branches.
    pub(crate) fn rows_of_shortest_segment(&self) -> usize {
        let rows = self
            .branches
            .iter()
            .map(|branch| branch.segment_length.div_ceil(branch.dilation_rate));
        // A configuration has a branch.
        rows.min().unwrap_or(1)
    }

    /// The mask.
    pub fn mask(&self) -> Mask {
        self.mask
    }

    /// How head offsets follow from head numbers.
    pub fn head_offsets(&self) -> HeadOffsets {
        self.head_offsets
    }

    /// What stands where a segment lacks tokens.
    pub fn padding(&self) -> Padding {
        self.padding
    }

    /// Where rows are written.
    pub fn output_rows(&self) -> OutputRows {
        self.output_rows
    }

    /// How the gradient treats the mixing weights.
    pub fn gradient(&self) -> MixGradient {
        self.gradient
    }

    /// Which heads take part in which branch.
    pub fn heads(&self) -> Heads {
        self.heads
    }

    /// The factor on the scores.
    pub fn softmax_scale(&self) -> f32 {
        self.softmax_scale
    }
}

impl fmt::Display for DilatedAttentionConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} heads of {}, branches", self.num_heads, self.head_dim)?;
        for branch in &self.branches {
            write!(f, " {}/{}", branch.segment_length, branch.dilation_rate)?;
        }
        write!(
            f,
            ", {:?}, {:?} offsets, {:?} padding, {:?} rows, {:?}, scale {}",
            self.mask,
            self.head_offsets,
            self.padding,
            self.output_rows,
            self.heads,
            self.softmax_scale
        )
    }
}

/// The shape of one call: how many sequences, how long, and how much of each is real.
///
/// Queries and keys are of one sequence unless the shape is made by [`cross`](Self::cross).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AttentionShape {
    batch: usize,
    seq_len: usize,
    valid_lens: Option<Vec<usize>>,
    keys: Option<KeyLengths>,
}

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
    valid_lens: Option<Vec<usize>>,
    valid_key_lens: Option<Vec<usize>>,
    is_cross: bool,
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
    /// [`Error::InvalidShape`] for what has no four dimensions, keys of another length than the queries without [`cross`](Self::cross), and lengths that do not
    /// fit.
    pub(crate) fn shape_of(&self, q: &[usize], k: &[usize]) -> Result<AttentionShape> {
        let lens = |what, shape: &[usize]| match *shape {
            [batch, len, _, _] => Ok([batch, len]),
            _ => Err(Error::InvalidShape {
                what,
                given: format!("{shape:?}"),
                need: "(batch, tokens, heads, elements)".to_owned(),
            }),
        };
        let ([batch, seq_len], [_, key_len]) = (lens("q", q)?, lens("k", k)?);
        if !self.is_cross && key_len != seq_len {
            return Err(Error::InvalidShape {
                what: "k",
                given: format!("{key_len} tokens"),
                need: format!(
                    "{seq_len}, as q has ({UNEQUAL_LENGTHS}; CallOptions::cross is for keys of another sequence)"
                ),
            });
        }
        let mut shape = match self.is_cross {
            true => AttentionShape::cross(batch, seq_len, key_len)?,
            false => AttentionShape::new(batch, seq_len)?,
        };
        if let Some(lens) = &self.valid_lens {
            shape = shape.with_valid_lens(lens)?;
        }
        if let Some(lens) = &self.valid_key_lens {
            shape = shape.with_valid_key_lens(lens)?;
        }
        Ok(shape)
    }
}

/// The options of a call of such a shape.
impl From<&AttentionShape> for CallOptions {
    fn from(shape: &AttentionShape) -> Self {
        Self {
            valid_lens: shape.valid_lens.clone(),
            valid_key_lens: shape.keys.as_ref().and_then(|keys| keys.valid_lens.clone()),
            is_cross: shape.is_cross(),
        }
    }
}

/// Lengths of keys and values that are not of the queries' sequence.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct KeyLengths {
    seq_len: usize,
    valid_lens: Option<Vec<usize>>,
}

impl AttentionShape {
    /// `batch` sequences of `seq_len` tokens each. Either may be 0: the call then computes nothing.
    ///
    /// # Errors
    /// [`Error::InvalidShape`] when `seq_len` exceeds [`MAX_TOKENS`], or `batch` 32 bits.
    pub fn new(batch: usize, seq_len: usize) -> Result<Self> {
        check_seq_len("seq_len", seq_len)?;
        if u32::try_from(batch).is_err() {
            return Err(Error::InvalidShape {
                what: "batch",
                given: batch.to_string(),
                need: format!("at most {}, in several calls", u32::MAX),
            });
        }
        Ok(Self {
            batch,
            seq_len,
            valid_lens: None,
            keys: None,
        })
    }

    /// `seq_len` queries over `key_len` keys and values of another sequence, for each of `batch` items. Only undilated
    /// attention over everything is defined then: one branch of rate 1, at least as long as both sequences, no causal mask
    /// and no zero keys; see [`DilatedAttentionConfig::dense`].
    ///
    /// # Errors
    /// [`Error::InvalidShape`] when a length exceeds [`MAX_TOKENS`].
    pub fn cross(batch: usize, seq_len: usize, key_len: usize) -> Result<Self> {
        check_seq_len("key_len", key_len)?;
        Ok(Self {
            keys: Some(KeyLengths {
                seq_len: key_len,
                valid_lens: None,
            }),
            ..Self::new(batch, seq_len)?
        })
    }

    /// Item `i` has only `valid_lens[i]` tokens; the call then equals separate calls of these lengths, and the rows
    /// behind them are 0 and uncovered.
    ///
    /// # Errors
    /// [`Error::InvalidShape`] when there is not one length per item, or one exceeds `seq_len`.
    pub fn with_valid_lens(mut self, valid_lens: &[usize]) -> Result<Self> {
        check_valid_lens("valid_lens", self.batch, self.seq_len, valid_lens)?;
        self.valid_lens = Some(valid_lens.to_vec());
        Ok(self)
    }

    /// Of item `i` only the first `valid_lens[i]` keys exist; for shapes made by [`cross`](Self::cross).
    ///
    /// # Errors
    /// [`Error::InvalidShape`] when the shape has no keys of its own, there is not one length per item, or one exceeds the
    /// number of keys.
    pub fn with_valid_key_lens(mut self, valid_lens: &[usize]) -> Result<Self> {
        let Some(keys) = &mut self.keys else {
            return Err(Error::InvalidShape {
                what: "valid_key_lens",
                given: "a shape whose keys are those of the queries' sequence".to_owned(),
                need: "a shape made by AttentionShape::cross or CallOptions::cross, or with_valid_lens".to_owned(),
            });
        };
        check_valid_lens("valid_key_lens", self.batch, keys.seq_len, valid_lens)?;
        keys.valid_lens = Some(valid_lens.to_vec());
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
        self.keys.as_ref().map_or(self.seq_len, |keys| keys.seq_len)
    }

    /// Whether keys and values are of another sequence than the queries.
    pub fn is_cross(&self) -> bool {
        self.keys.is_some()
    }

    /// Tokens of item `item` that are real.
    ///
    /// # Panics
    /// When `item` is not below [`batch`](Self::batch).
    pub fn valid_len(&self, item: usize) -> usize {
        assert!(item < self.batch, "item {item} of {}", self.batch);
        self.valid_lens
            .as_ref()
            .map_or(self.seq_len, |lens| lens[item])
    }

    /// Keys of item `item` that are real.
    ///
    /// # Panics
    /// When `item` is not below [`batch`](Self::batch).
    pub fn valid_key_len(&self, item: usize) -> usize {
        match &self.keys {
            None => self.valid_len(item),
            Some(keys) => {
                assert!(item < self.batch, "item {item} of {}", self.batch);
                keys.valid_lens
                    .as_ref()
                    .map_or(keys.seq_len, |lens| lens[item])
            }
        }
    }

    /// Whether `config` is defined for this shape.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] when queries and keys are of two sequences and it is not dense attention.
    pub(crate) fn check_config(&self, config: &DilatedAttentionConfig) -> Result<()> {
        let longest = self.seq_len.max(self.key_len());
        let dense = config.branches.len() == 1
            && config.branches[0].dilation_rate == 1
            && config.branches[0].segment_length >= longest
            && config.mask == Mask::Full
            && config.padding == Padding::Masked;
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

/// A number that a configuration or a shape has checked, in the 32 bits that plans and shaders count in. A segment may be longer:
/// it is cut to the sequence.
pub(crate) fn in_u32(checked: usize) -> u32 {
    u32::try_from(checked).unwrap_or(u32::MAX)
}

fn check_seq_len(what: &'static str, seq_len: usize) -> Result<()> {
    if seq_len > MAX_TOKENS {
        return Err(Error::InvalidShape {
            what,
            given: seq_len.to_string(),
            need: format!("at most {MAX_TOKENS}"),
        });
    }
    Ok(())
}

/// What to do with sequences of different lengths.
pub(crate) const UNEQUAL_LENGTHS: &str = "items of different lengths are padded to the longest, and \
     with_valid_lens (of CallOptions, of AttentionShape) tells their own";

fn check_valid_lens(
    what: &'static str,
    batch: usize,
    seq_len: usize,
    lens: &[usize],
) -> Result<()> {
    if lens.len() != batch {
        return Err(Error::InvalidShape {
            what,
            given: format!("{} lengths", lens.len()),
            need: format!("{batch}, one per batch item"),
        });
    }
    for (item, &len) in lens.iter().enumerate() {
        if len > seq_len {
            return Err(Error::InvalidShape {
                what,
                given: format!("{len} for item {item}"),
                need: format!("at most the sequence length {seq_len}"),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_configurations_name_the_value() {
        let new = DilatedAttentionConfig::new;
        for (config, word) in [
            (new(0, 64, &[8], &[1]), "num_heads is 0"),
            (new(1, 0, &[8], &[1]), "head_dim is 0"),
            (new(1, 66, &[8], &[1]), "head_dim is 66"),
            (new(1, 260, &[8], &[1]), "head_dim is 260"),
            (new(1, 64, &[], &[]), "number of branches is 0"),
            (
                new(1, 64, &[8, 16], &[1]),
                "2 segment lengths and 1 dilation rates",
            ),
            (
                new(1, 64, &[8, 0], &[1, 1]),
                "branch 1 with segment length 0",
            ),
            (new(1, 64, &[8], &[0]), "dilation rate 0"),
            (
                new(1, 64, &[8], &[u32::MAX as usize]),
                "dilation rate 4294967295",
            ),
            (new(1 << 26, 256, &[8], &[1]), "67108864 * 256"),
            (
                new(1, 64, &[8], &[1]).and_then(|c| c.with_softmax_scale(f32::NAN)),
                "softmax_scale is NaN",
            ),
        ] {
            let error = config.expect_err("must be refused").to_string();
            assert!(error.contains(word), "'{error}' does not say '{word}'");
        }
        let shape = AttentionShape::new(2, 8).expect("valid");
        for lens in [&[8][..], &[8, 9][..]] {
            assert!(matches!(
                shape.clone().with_valid_lens(lens),
                Err(Error::InvalidShape {
                    what: "valid_lens",
                    ..
                })
            ));
        }
    }

    fn small() -> DilatedAttentionConfig {
        DilatedAttentionConfig::new(3, 8, &[8, 21], &[1, 4]).unwrap()
    }

    #[test]
    fn the_largest_numbers_that_are_allowed() {
        let new = DilatedAttentionConfig::new;
        for head_dim in [4, MAX_HEAD_DIM] {
            assert_eq!(new(1, head_dim, &[8], &[1]).unwrap().head_dim(), head_dim);
        }
        new((1 << 24) - 1, 256, &[8], &[1]).unwrap();
        new(1 << 24, 256, &[8], &[1]).unwrap_err();
        new(1, 64, &[usize::MAX], &[MAX_TOKENS]).unwrap();
        AttentionShape::new(u32::MAX as usize, MAX_TOKENS).unwrap();
        AttentionShape::new(1, MAX_TOKENS + 1).unwrap_err();
        AttentionShape::new(u32::MAX as usize + 1, 1).unwrap_err();
        AttentionShape::cross(1, 1, MAX_TOKENS).unwrap();
        AttentionShape::cross(1, 1, MAX_TOKENS + 1).unwrap_err();
        assert_eq!([5, usize::MAX].map(in_u32), [5, u32::MAX]);
    }

    #[test]
    fn options_are_set_one_by_one_and_stay() {
        let plain = small();
        assert_eq!((plain.num_heads(), plain.head_dim()), (3, 8));
        assert_eq!(plain.embed_dim(), 24);
        assert_eq!(plain.rows_of_shortest_segment(), 6);
        assert_eq!(plain.softmax_scale(), 1.0 / 8f32.sqrt());
        let set = plain
            .clone()
            .with_mask(Mask::Causal)
            .with_head_offsets(HeadOffsets::RoundRobin)
            .with_padding(Padding::ZeroKeys)
            .with_output_rows(OutputRows::Torchscale)
            .with_gradient(MixGradient::DetachedMix)
            .with_heads(Heads::Partitioned)
            .with_softmax_scale(0.0)
            .unwrap();
        let options = |config: &DilatedAttentionConfig| {
            (
                config.mask(),
                config.head_offsets(),
                config.padding(),
                config.output_rows(),
                config.gradient(),
                config.heads(),
            )
        };
        let all = (
            Mask::Causal,
            HeadOffsets::RoundRobin,
            Padding::ZeroKeys,
            OutputRows::Torchscale,
            MixGradient::DetachedMix,
            Heads::Partitioned,
        );
        assert_eq!(options(&set), all);
        assert_ne!(options(&plain).0, all.0);
        assert_eq!(
            set.to_string(),
            "3 heads of 8, branches 8/1 21/4, Causal, RoundRobin offsets, ZeroKeys padding, Torchscale rows, Partitioned, scale 0"
        );
        // Other branches or another size, and all else as it was.
        let other = set.clone().with_branches(&[5], &[2]).unwrap();
        let branch = Branch {
            segment_length: 5,
            dilation_rate: 2,
        };
        assert_eq!(other.branches(), [branch]);
        assert_eq!((options(&other), other.softmax_scale()), (all, 0.0));
        let other = set.clone().with_size(2, 16).unwrap();
        assert_eq!((other.num_heads(), other.head_dim()), (2, 16));
        assert_eq!(other.softmax_scale(), 0.25);
        assert_eq!((options(&other), other.branches()), (all, set.branches()));
        set.clone().with_branches(&[5], &[0]).unwrap_err();
        set.with_size(2, 17).unwrap_err();
        // What torchscale's weights need.
        let torchscale = small()
            .with_head_offsets(HeadOffsets::RoundRobin)
            .with_torchscale();
        let (_, offsets, padding, rows, gradient, _) = options(&torchscale);
        assert_eq!(offsets, HeadOffsets::Blocked);
        assert_eq!(padding, Padding::ZeroKeys);
        assert_eq!(rows, OutputRows::Torchscale);
        assert_eq!(gradient, MixGradient::DetachedMix);
    }

    #[test]
    fn shapes_say_how_much_of_each_item_is_real() {
        let shape = AttentionShape::new(2, 9).unwrap();
        assert_eq!((shape.batch(), shape.seq_len(), shape.key_len()), (2, 9, 9));
        assert!(!shape.is_cross());
        assert_eq!((shape.valid_len(1), shape.valid_key_len(1)), (9, 9));
        let shape = shape.with_valid_lens(&[9, 4]).unwrap();
        assert_eq!((shape.valid_len(0), shape.valid_len(1)), (9, 4));
        assert_eq!(shape.valid_key_len(1), 4);
        let cross = AttentionShape::cross(2, 9, 5).unwrap();
        assert_eq!((cross.seq_len(), cross.key_len()), (9, 5));
        assert!(cross.is_cross());
        assert_eq!((cross.valid_len(1), cross.valid_key_len(1)), (9, 5));
        let cross = cross.with_valid_lens(&[1, 2]).unwrap();
        let cross = cross.with_valid_key_lens(&[5, 3]).unwrap();
        assert_eq!((cross.valid_len(1), cross.valid_key_len(1)), (2, 3));
        for read in [AttentionShape::valid_len, AttentionShape::valid_key_len] {
            let beyond = || read(&cross, 2);
            assert!(std::panic::catch_unwind(beyond).is_err());
        }
    }

    #[test]
    fn a_call_takes_its_shape_from_its_tensors_and_options() {
        let [nine, five] = [[2, 9, 3, 8], [2, 5, 3, 8]];
        let plain = CallOptions::new();
        let shape = plain.shape_of(&nine, &nine).unwrap();
        assert_eq!(shape, AttentionShape::new(2, 9).unwrap());
        let told = |result: Result<AttentionShape>| result.unwrap_err().to_string();
        assert!(told(plain.shape_of(&nine, &five)).contains("5 tokens"));
        assert!(told(plain.shape_of(&nine[..3], &nine)).contains("[2, 9, 3]"));
        assert!(told(plain.shape_of(&nine, &nine[..3])).contains("[2, 9, 3]"));
        let cross = CallOptions::cross()
            .with_valid_lens(&[9, 4])
            .with_valid_key_lens(&[5, 3]);
        let shape = cross.shape_of(&nine, &five).unwrap();
        let expected = AttentionShape::cross(2, 9, 5)
            .and_then(|shape| shape.with_valid_lens(&[9, 4]))
            .and_then(|shape| shape.with_valid_key_lens(&[5, 3]))
            .unwrap();
        assert_eq!(shape, expected);
        assert_eq!(CallOptions::from(&shape), cross);
        let keys = CallOptions::new().with_valid_key_lens(&[9, 9]);
        assert!(told(keys.shape_of(&nine, &nine)).contains("AttentionShape::cross"));
    }

    /// Each condition of dense attention, by a configuration that fails it alone.
    #[test]
    fn two_sequences_need_dense_attention() {
        let of = |segments: &[usize], rates: &[usize]| {
            DilatedAttentionConfig::new(3, 8, segments, rates).unwrap()
        };
        let longest = of(&[9], &[1]);
        let shapes = [(9, 5), (5, 9)].map(|(n, keys)| AttentionShape::cross(2, n, keys).unwrap());
        let others = [
            of(&[9, 9], &[1, 1]),
            of(&[9], &[2]),
            of(&[8], &[1]),
            longest.clone().with_mask(Mask::Causal),
            longest.clone().with_padding(Padding::ZeroKeys),
        ];
        for shape in &shapes {
            shape.check_config(&longest).unwrap();
            shape
                .check_config(&DilatedAttentionConfig::dense(3, 8).unwrap())
                .unwrap();
            for config in &others {
                shape.check_config(config).unwrap_err();
            }
        }
        let one = AttentionShape::new(2, 9).unwrap();
        for config in &others {
            one.check_config(config).unwrap();
        }
    }
}
