//! Options of dilated attention, and the shape of a call, as plain data.
//!
//! A [`DilatedAttentionConfig`] is always valid: it has at least one branch, all segment lengths and dilation rates are at least 1,
//! and the head size is supported. Plans, the reference and kernels rely on this. Batch size, lengths, and keys of another sequence
//! belong to a call: to its tensors and [`CallOptions`]; or, for plans and models, to an [`AttentionShape`].
//!
//! The semantics are those of LongNet (Ding et al. 2023) as implemented in microsoft/torchscale
//! (`torchscale/component/dilated_attention.py`). Partitioned heads are those of dilated-attention-pytorch.

use std::fmt;

use crate::error::{Error, Result};

/// Largest supported head size, in elements.
pub const MAX_HEAD_DIM: usize = 256;

/// Longest sequence, in tokens. Indices of tokens and rows, and sums of two of them, must fit in the 32-bit integers of shaders.
pub const MAX_TOKENS: usize = (1 << 31) - 1;

/// A branch: attention inside segments of `segment_length` tokens, over every `dilation_rate`-th token of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Branch {
    /// Tokens in a segment. If the sequence is shorter, it is one segment.
    pub segment_length: usize,
    /// Distance in tokens between two rows of the branch.
    pub dilation_rate: usize,
}

/// Which keys of its segment a query sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mask {
    /// All keys.
    #[default]
    Full,
    /// Keys at or before the query.
    Causal,
}

/// The offset of head `h` in a segment: the token at which its rows begin. `H` is the number of heads, `r` the dilation rate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum HeadOffsets {
    /// Contiguous groups of heads share an offset: `floor(h / ceil(H / r))` (torchscale).
    #[default]
    Blocked,
    /// Neighbouring heads have neighbouring offsets: `h mod r` (the paper's formula).
    RoundRobin,
}

/// How the padding of a segment counts, where the segment has fewer tokens than its length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Padding {
    /// Not at all: only tokens are keys.
    #[default]
    Masked,
    /// As keys of score 0 and value 0. So it is in torchscale, and weights trained with it expect this.
    ZeroKeys,
}

/// The token to which the result of a row of a branch is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum OutputRows {
    /// The token of the row's query.
    #[default]
    Aligned,
    /// As in torchscale, which writes segment `s` from token `s * ceil(w / r) * r` on, for segment length `w` and dilation rate
    /// `r`. If `w` is not a multiple of `r`, rows are written to other tokens than their own. Padding rows are written too, with a
    /// zero query ("phantom rows").
    Torchscale,
}

/// How the gradient treats the weights that mix the branches. The forward does not depend on this.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum MixGradient {
    /// The mixing weights are differentiated, too: the exact gradient.
    #[default]
    Exact,
    /// The mixing weights count as constants, as in torchscale's autograd.
    DetachedMix,
}

/// Which heads take part in which branch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Heads {
    /// Every head in every branch.
    #[default]
    EveryBranch,
    /// Each head in one branch. Heads are divided into one contiguous group for each of the `G` branches: `H / G` heads, and one
    /// more in the first `H mod G` groups. The heads of group `i` take part in branch `i` only, with offset `i mod r_i`, and the
    /// result is divided by `G` (dilated-attention-pytorch).
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
    /// A configuration of `num_heads` heads of `head_dim` elements, with a branch for each pair of a segment length and a dilation
    /// rate. All other options have their defaults.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] when a list is empty, the lists have different lengths, a number is 0, `head_dim` is not a multiple
    /// of 4 in 4..=256, or `num_heads * head_dim` does not fit in 32 bits.
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

    /// Replaces the branches.
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

    /// Replaces the number of heads and their size. The softmax scale becomes the default for that size.
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

    /// Ordinary attention over whole sequences: one branch with dilation rate 1 and the largest segment length.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn dense(num_heads: usize, head_dim: usize) -> Result<Self> {
        Self::new(num_heads, head_dim, &[MAX_TOKENS], &[1])
    }

    /// Sets the semantics of torchscale: blocked head offsets, zero keys, its output rows, and a gradient with constant mixing
    /// weights. Weights trained with torchscale (LongNet, GigaPath, LongViT) need this.
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

    /// Sets how the padding of a segment counts.
    pub fn with_padding(mut self, padding: Padding) -> Self {
        self.padding = padding;
        self
    }

    /// Sets to which token the result of a row is written.
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

    /// Sets the factor on the scores `q . k`. By default it is `1 / sqrt(head_dim)`. Any finite number is allowed, 0 and negative ones too.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] when the factor is not finite.
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

    /// Elements of all heads together, E: `num_heads * head_dim`.
    pub fn embed_dim(&self) -> usize {
        self.num_heads * self.head_dim
    }

    /// The branches, in the order in which they were given.
    pub fn branches(&self) -> &[Branch] {
        &self.branches
    }

    /// Rows of a segment, `ceil(segment_length / dilation_rate)`, in the branch that has the fewest.
    pub(crate) fn rows_of_shortest_segment(&self) -> usize {
        let rows = self
            .branches
            .iter()
            .map(|branch| branch.segment_length.div_ceil(branch.dilation_rate));
        // Every configuration has a branch.
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

    /// How the padding of a segment counts.
    pub fn padding(&self) -> Padding {
        self.padding
    }

    /// To which token the result of a row is written.
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

/// The shape of a call: the number of sequences, their length in the tensors, and how many tokens of each are real (not padding).
///
/// Queries and keys belong to the same sequence, unless the shape is made by [`cross`](Self::cross).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AttentionShape {
    batch: usize,
    seq_len: usize,
    valid_lens: Option<Vec<usize>>,
    keys: Option<KeyLengths>,
}

/// Options of one call of attention: how many tokens of each item are real (not padding), and whether keys belong to another sequence.
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
    /// All tokens are real, and keys and values belong to the sequence of the queries.
    pub fn new() -> Self {
        Self::default()
    }

    /// Cross attention: keys and values belong to another sequence, which may have another length. [`AttentionShape::cross`] says
    /// for which configurations this is defined.
    pub fn cross() -> Self {
        Self {
            is_cross: true,
            ..Self::default()
        }
    }

    /// Sets the number of tokens of each item; the rest is padding. See [`AttentionShape::with_valid_lens`].
    pub fn with_valid_lens(self, valid_lens: &[usize]) -> Self {
        Self {
            valid_lens: Some(valid_lens.to_vec()),
            ..self
        }
    }

    /// Sets the number of keys of each item, for [`cross`](Self::cross) attention; the rest is padding.
    pub fn with_valid_key_lens(self, valid_lens: &[usize]) -> Self {
        Self {
            valid_key_lens: Some(valid_lens.to_vec()),
            ..self
        }
    }

    /// The shape of a call whose queries and keys have these shapes, (B, N, H, D) each.
    ///
    /// # Errors
    /// [`Error::InvalidShape`] for shapes without four dimensions, for keys of another length than the queries without
    /// [`cross`](Self::cross), and for valid lengths that do not fit.
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

/// The options of a call with this shape.
impl From<&AttentionShape> for CallOptions {
    fn from(shape: &AttentionShape) -> Self {
        Self {
            valid_lens: shape.valid_lens.clone(),
            valid_key_lens: shape.keys.as_ref().and_then(|keys| keys.valid_lens.clone()),
            is_cross: shape.is_cross(),
        }
    }
}

/// Lengths of keys and values that belong to another sequence than the queries.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct KeyLengths {
    seq_len: usize,
    valid_lens: Option<Vec<usize>>,
}

impl AttentionShape {
    /// The shape of `batch` sequences of `seq_len` tokens each. Either may be 0; then the call computes nothing.
    ///
    /// # Errors
    /// [`Error::InvalidShape`] when `seq_len` is larger than [`MAX_TOKENS`], or `batch` does not fit in 32 bits.
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

    /// The shape of cross attention: for each of `batch` items, `seq_len` queries over `key_len` keys and values of another
    /// sequence. It is defined for dense attention only: one branch with dilation rate 1 and a segment length of at least both
    /// lengths, without causal mask and zero keys; see [`DilatedAttentionConfig::dense`].
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

    /// Sets the number of tokens of each item. The call then has the same results as separate calls with sequences of these
    /// lengths. Output rows after the end of an item are 0, and no branch covers them.
    ///
    /// # Errors
    /// [`Error::InvalidShape`] when the number of lengths is not the number of items, or a length is larger than `seq_len`.
    pub fn with_valid_lens(mut self, valid_lens: &[usize]) -> Result<Self> {
        check_valid_lens("valid_lens", self.batch, self.seq_len, valid_lens)?;
        self.valid_lens = Some(valid_lens.to_vec());
        Ok(self)
    }

    /// Sets the number of keys of each item, for shapes made by [`cross`](Self::cross).
    ///
    /// # Errors
    /// [`Error::InvalidShape`] for a shape that is not made by [`cross`](Self::cross), when the number of lengths is not the number
    /// of items, or when a length is larger than the number of keys.
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

    /// Tokens of a sequence in the tensors of queries and outputs, N, padding included.
    pub fn seq_len(&self) -> usize {
        self.seq_len
    }

    /// Tokens of a sequence in the tensors of keys and values, padding included.
    pub fn key_len(&self) -> usize {
        self.keys.as_ref().map_or(self.seq_len, |keys| keys.seq_len)
    }

    /// Whether keys and values belong to another sequence than the queries.
    pub fn is_cross(&self) -> bool {
        self.keys.is_some()
    }

    /// Number of real tokens of item `item`.
    ///
    /// # Panics
    /// When `item` is not below [`batch`](Self::batch).
    pub fn valid_len(&self, item: usize) -> usize {
        assert!(item < self.batch, "item {item} of {}", self.batch);
        self.valid_lens
            .as_ref()
            .map_or(self.seq_len, |lens| lens[item])
    }

    /// Number of real keys of item `item`.
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

    /// Checks that `config` is defined for this shape.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] for cross attention with a configuration that is not dense.
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

/// A number in the 32 bits in which plans and shaders count. Configurations and shapes have checked that it fits. Only segment
/// lengths may be larger; they are cut to the length of the sequence anyway.
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

/// Part of an error's text: what to do with sequences of different lengths.
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
