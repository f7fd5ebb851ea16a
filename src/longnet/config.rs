//! Options of a LongNet.

use crate::config::{DilatedAttentionConfig, Heads, MAX_TOKENS, Mask};
use crate::device::DType;
use crate::error::{Error, Result};
use crate::nn::ProjectionNorm;
use crate::ops::Activation;
use crate::ops::Positions;

/// Sequences of up to this many positions have one centre of xPos, their middle, as in torchscale. Half of [`MAX_BLOCK`].
const ONE_CENTRE: usize = 32_768;

/// Largest block of positions with one centre. For a base of 512, `(0.4/1.4)^(block / 2 / base)` can still be represented in f32;
/// for smaller bases blocks are smaller in proportion.
const MAX_BLOCK: usize = 65_536;

/// Most layers: far more than any model has, and few enough that a mistaken number is an error at once.
const MAX_LAYERS: usize = 1 << 16;

/// Limit on learned positions, so that rows of their table and its bytes can be counted without overflow.
const MAX_POSITIONS: usize = 1 << 31;

/// The weights that turn features into logits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum OutputProjection {
    /// No output projection: the model ends with features.
    #[default]
    None,
    /// Its own weights, without bias.
    Own,
    /// The weights of the token embedding.
    Tied,
}

/// Cross attention to an encoder.
#[derive(Clone, Debug, PartialEq)]
pub struct CrossAttentionConfig {
    /// The attention: dense ([`DilatedAttentionConfig::dense`]) as in torchscale. Other configurations work if both sequences have
    /// the same length.
    pub attention: DilatedAttentionConfig,
    /// Layer norms inside.
    pub projection_norm: ProjectionNorm,
}

/// Options of a [`LongNet`](super::LongNet). Start from [`encoder`](Self::encoder) or [`decoder`](Self::decoder), and change fields.
///
/// Two options have no public field, because others depend on them. The attention is changed by
/// [`with_attention`](Self::with_attention), which keeps the causal mask of a decoder. The number of layers is fixed by the
/// constructor, because initial weights and residuals are scaled by it.
///
/// ```
/// use dilated_attention::DilatedAttentionConfig;
/// use dilated_attention::longnet::{LongNetConfig, OutputProjection};
/// let attention = DilatedAttentionConfig::new(8, 32, &[256, 1024], &[1, 4])?;
/// let mut config = LongNetConfig::decoder(attention, 4, 1024).with_vocabulary(256, OutputProjection::Own);
/// config.xpos_scale_base = Some(512.0);
/// # Ok::<(), dilated_attention::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct LongNetConfig {
    attention: DilatedAttentionConfig,
    num_layers: usize,
    /// Elements of a row inside the feed-forward networks.
    pub ffn_dim: usize,
    /// Whether layer norms come after the residuals (post-norm) or before the sublayers (pre-norm).
    pub post_norm: bool,
    /// Whether the feed-forward networks have a layer norm inside (sub-LN).
    pub sub_norm: bool,
    /// Layer norms inside self-attention.
    pub projection_norm: ProjectionNorm,
    /// Type of the activations between operations: f32, or for inference f16 or bf16, which halves memory and memory traffic. The
    /// key-value cache has this type, too. Weights, sums, logits and losses are f32.
    pub activations: DType,
    /// Factor on residuals (DeepNorm).
    pub residual_scale: f32,
    /// Factor on the initial weights of value and output projections and of the feed-forward networks.
    pub initial_gain: f32,
    /// Activation of the feed-forward networks.
    pub activation: Activation,
    /// Epsilon of all layer norms.
    pub norm_eps: f32,
    /// Base of the xPos scale (torchscale: 512); `None` for a model without xPos.
    pub xpos_scale_base: Option<f32>,
    /// Cross attention to an encoder, in each layer.
    pub cross_attention: Option<CrossAttentionConfig>,
    /// Number of tokens in the vocabulary; `None` for a model without token embedding.
    pub vocab_size: Option<usize>,
    /// Factor on the token embedding.
    pub embedding_scale: f32,
    /// Most positions, for a model that learns an embedding of each position; `None` for a model that does not.
    pub learned_positions: Option<usize>,
    /// Whether a layer norm follows the embedding.
    pub embedding_norm: bool,
    /// Whether a layer norm follows the last layer.
    pub final_norm: bool,
    /// The weights that turn features into logits.
    pub output_projection: OutputProjection,
    /// Probability that an element of a sublayer's output, or of the embedding, is dropped in training.
    pub dropout: f32,
    /// Probability that an element of the activation inside a feed-forward network is dropped in training.
    pub activation_dropout: f32,
}

impl LongNetConfig {
    /// An encoder like those of LongNet and GigaPath: pre-norm with sub-LN, GELU, a final norm, no embedding. The width of the
    /// model is the number of heads times their size. Self-attention has the mask of `attention`.
    pub fn encoder(attention: DilatedAttentionConfig, num_layers: usize, ffn_dim: usize) -> Self {
        Self {
            attention,
            num_layers,
            ffn_dim,
            post_norm: false,
            sub_norm: true,
            projection_norm: ProjectionNorm::Inner,
            activations: DType::F32,
            residual_scale: 1.0,
            // Without layers the factor is that of one layer.
            initial_gain: (2.0 * num_layers.max(1) as f32).ln().sqrt(),
            activation: Activation::Gelu,
            norm_eps: 1e-5,
            xpos_scale_base: None,
            cross_attention: None,
            vocab_size: None,
            embedding_scale: 1.0,
            learned_positions: None,
            embedding_norm: false,
            final_norm: true,
            output_projection: OutputProjection::None,
            dropout: 0.0,
            activation_dropout: 0.0,
        }
    }

    /// A decoder: as [`encoder`](Self::encoder), with a causal mask.
    pub fn decoder(attention: DilatedAttentionConfig, num_layers: usize, ffn_dim: usize) -> Self {
        Self::encoder(attention.with_mask(Mask::Causal), num_layers, ffn_dim)
    }

    /// Replaces the self-attention: heads, branches and semantics. A causal mask stays causal, whatever the mask of `attention`.
    pub fn with_attention(self, attention: DilatedAttentionConfig) -> Self {
        let attention = match self.attention.mask() {
            Mask::Causal => attention.with_mask(Mask::Causal),
            Mask::Full => attention,
        };
        Self { attention, ..self }
    }

    /// Sets the vocabulary: the number of tokens that the model embeds, and the projection of its features to their logits.
    /// A [`decoder`](Self::decoder) with both is a language model.
    pub fn with_vocabulary(self, vocab_size: usize, projection: OutputProjection) -> Self {
        Self {
            vocab_size: Some(vocab_size),
            output_projection: projection,
            ..self
        }
    }

    /// Heads, branches and mask of self-attention. The width of the model is the number of heads times their size.
    pub fn attention(&self) -> &DilatedAttentionConfig {
        &self.attention
    }

    /// Number of layers.
    pub fn num_layers(&self) -> usize {
        self.num_layers
    }

    /// Plain pre-norm: layer norms before the sublayers and at the end, none inside the sublayers, residuals not scaled.
    pub fn with_pre_norm(self) -> Self {
        Self {
            post_norm: false,
            sub_norm: false,
            projection_norm: ProjectionNorm::None,
            residual_scale: 1.0,
            initial_gain: 1.0,
            final_norm: true,
            ..self
        }
    }

    /// Plain post-norm: layer norms after the residuals, none inside the sublayers and none at the end.
    pub fn with_post_norm(self) -> Self {
        Self {
            post_norm: true,
            final_norm: false,
            ..self.with_pre_norm()
        }
    }

    /// DeepNorm for a model of L layers that is not part of an encoder-decoder: post-norm, residuals times `(2 L)^(1/4)`, initial
    /// weights divided by `(8 L)^(1/4)`.
    pub fn with_deep_norm(self) -> Self {
        // Without layers the factors are those of one layer.
        let layers = self.num_layers.max(1) as f32;
        Self {
            residual_scale: (2.0 * layers).powf(0.25),
            initial_gain: (8.0 * layers).powf(-0.25),
            ..self.with_post_norm()
        }
    }

    pub(super) fn check(&self) -> Result<()> {
        let invalid = |what, given: String, need| Err(Error::InvalidConfig { what, given, need });
        for (what, probability) in [
            ("dropout", self.dropout),
            ("activation_dropout", self.activation_dropout),
        ] {
            if !(0.0..1.0).contains(&probability) {
                return invalid(what, probability.to_string(), "at least 0 and below 1");
            }
        }
        if self.num_layers > MAX_LAYERS {
            return invalid("num_layers", self.num_layers.to_string(), "at most 65536");
        }
        let positive = |value: f32| value > 0.0 && value.is_finite();
        for (what, value, valid, need) in [
            (
                "norm_eps",
                self.norm_eps,
                positive(self.norm_eps),
                "positive and finite",
            ),
            (
                "residual_scale",
                self.residual_scale,
                self.residual_scale.is_finite(),
                "a finite number",
            ),
            (
                "initial_gain",
                self.initial_gain,
                self.initial_gain.is_finite(),
                "a finite number",
            ),
            (
                "embedding_scale",
                self.embedding_scale,
                self.embedding_scale.is_finite(),
                "a finite number",
            ),
            (
                "xpos_scale_base",
                self.xpos_scale_base.unwrap_or(1.0),
                self.xpos_scale_base.is_none_or(positive),
                "positive and finite, or none",
            ),
        ] {
            if !valid {
                return invalid(what, value.to_string(), need);
            }
        }
        match self.activations {
            DType::F32 => {}
            DType::F16 | DType::Bf16 if self.ffn_dim.is_multiple_of(4) => {}
            DType::F16 | DType::Bf16 => {
                let need = "a multiple of 4 with activations in half precision";
                return invalid("ffn_dim", self.ffn_dim.to_string(), need);
            }
            DType::U32 => return invalid("activations", "u32".to_owned(), "f32, f16 or bf16"),
        }
        if self.ffn_dim == 0 || u32::try_from(self.ffn_dim).is_err() {
            return invalid(
                "ffn_dim",
                self.ffn_dim.to_string(),
                "at least 1 and below 2^32",
            );
        }
        if let Some(positions @ (0 | MAX_POSITIONS..)) = self.learned_positions {
            let need = "at least 1 and below 2^31, or none";
            return invalid("learned_positions", positions.to_string(), need);
        }
        if let Some(size) = self.vocab_size
            && (size == 0 || size >= u32::MAX as usize)
        {
            let need = "at least 1 and below 2^32 - 1: ids of tokens have 32 bits";
            return invalid("vocab_size", size.to_string(), need);
        }
        if self.output_projection != OutputProjection::None && self.vocab_size.is_none() {
            return invalid(
                "output projection",
                "no vocab_size".to_owned(),
                "the number of tokens it projects to",
            );
        }
        if let Some(cross) = &self.cross_attention
            && cross.attention.embed_dim() != self.attention.embed_dim()
        {
            return invalid(
                "width of cross-attention",
                cross.attention.embed_dim().to_string(),
                "that of self-attention",
            );
        }
        Ok(())
    }

    /// Scales a limit on positions, which holds for bases from 512 on, to the base of this model.
    fn for_base(&self, limit: usize) -> usize {
        let base = f64::from(self.xpos_scale_base.unwrap_or(512.0));
        (limit as f64 * (base / 512.0).min(1.0)) as usize
    }

    /// Positions of `seq_len` rows of an item, from position `first` on, of a sequence that will have `total` positions.
    pub(super) fn positions(
        &self,
        first: usize,
        seq_len: usize,
        total: usize,
    ) -> Result<Positions> {
        if total <= self.for_base(ONE_CENTRE) {
            return Ok(Positions {
                seq_len,
                first,
                block: MAX_BLOCK,
                centre: total.div_ceil(2),
            });
        }
        let block = self.xpos_block().ok_or_else(|| Error::InvalidConfig {
            what: "xPos over more tokens than 64 times its base, or 32768",
            given: self.attention.to_string(),
            need: "segments that all divide the longest, which is at most 128 times the base and 65536; or learned positions",
        })?;
        Ok(Positions {
            seq_len,
            first,
            block,
            centre: block / 2,
        })
    }

    /// As [`positions`](Self::positions), with a centre that does not depend on the length of the sequence, for decoding token by token.
    pub(super) fn decode_positions(&self, first: usize, seq_len: usize) -> Result<Positions> {
        let block = self.xpos_block();
        let end = first as u64 + seq_len as u64;
        let one_centre = self.for_base(ONE_CENTRE);
        if block.is_none() && end > one_centre as u64 {
            return self.positions(first, seq_len, usize::MAX);
        }
        let block = block.unwrap_or(one_centre);
        Ok(Positions {
            seq_len,
            first,
            block,
            centre: block / 2,
        })
    }

    /// Most tokens that may come one by one, and what they are limited by.
    pub(super) fn max_decoded_tokens(&self) -> (usize, &'static str) {
        let mut limits = vec![(MAX_TOKENS, "the longest sequence that kernels can number")];
        if let Some(positions) = self.learned_positions {
            limits.push((positions, "the positions that the model has learned"));
        }
        if self.xpos_scale_base.is_some() && self.xpos_block().is_none() {
            let of = "the positions of one centre of xPos, with segments that do not all divide the longest";
            limits.push((self.for_base(ONE_CENTRE), of));
        }
        limits.into_iter().min().unwrap_or_default()
    }

    /// Length of a block such that a query and the keys that it sees are always in the same block: the longest segment, if every
    /// other segment lies within one of these. `None` if there is no such length, or if it is too long for one centre.
    pub(super) fn xpos_block(&self) -> Option<usize> {
        let lengths = || {
            self.attention
                .branches()
                .iter()
                .map(|branch| branch.segment_length)
        };
        let block = lengths().max()?;
        let nested = lengths().all(|length| block.is_multiple_of(length));
        (nested && block <= self.for_base(MAX_BLOCK)).then_some(block)
    }

    /// Whether rows of a branch may be written to another token than their own: with torchscale's output rows, if a dilation rate
    /// does not divide its segment length.
    pub(super) fn rows_move(&self) -> bool {
        let moves = |branch: &crate::config::Branch| {
            !branch.segment_length.is_multiple_of(branch.dilation_rate)
        };
        self.attention.output_rows() == crate::config::OutputRows::Torchscale
            && self.attention.heads() == Heads::EveryBranch
            && self.attention.branches().iter().any(moves)
    }
}
