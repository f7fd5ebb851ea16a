//! The options of dilated attention.

use std::fmt;

use super::{MAX_HEAD_DIM, MAX_TOKENS};
use crate::error::{Error, Result};

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

/// The options of dilated attention. Always valid; see [`config`](crate::config).
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
                "a multiple of 4 from 4 to 256; pad other sizes below with zeros, and call with_softmax_scale for the true size",
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
