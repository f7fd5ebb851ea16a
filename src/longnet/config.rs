//! Options of a LongNet.

use crate::config::{DilatedAttentionConfig, Heads, Mask};
use crate::device::DType;
use crate::error::{Error, Result};
use crate::nn::ProjectionNorm;
use crate::ops::Activation;
use crate::ops::Positions;

/// Positions up to which a sequence shares one centre of xPos, its middle as in torchscale; half of [`MAX_BLOCK`].
const ONE_CENTRE: usize = 32_768;

/// Largest block of positions with one centre: `(0.4/1.4)^(block / 2 / base)` is still a number in f32 with a base of 512. With
/// smaller bases blocks are smaller in proportion.
const MAX_BLOCK: usize = 65_536;

/// Most layers: far more than any model has, and few enough that a number by mistake is an error at once.
const MAX_LAYERS: usize = 1 << 16;

/// Learned positions are fewer: with the rows before the first one, rows and their bytes can be counted.
const MAX_POSITIONS: usize = 1 << 31;

/// Which weights make logits of features.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum OutputProjection {
    /// None: the model ends with features.
    #[default]
    None,
    /// Weights of its own, without bias.
    Own,
    /// Those of the token embedding.
    Tied,
}

/// Attention to an encoder.
#[derive(Clone, Debug, PartialEq)]
pub struct CrossAttentionConfig {
    /// Dense ([`DilatedAttentionConfig::dense`]) as in torchscale, or of two sequences of one length any other.
    pub attention: DilatedAttentionConfig,
    /// Layer norms inside.
    pub projection_norm: ProjectionNorm,
}

/// Options of a [`LongNet`](super::LongNet). Made by [`encoder`](Self::encoder) or [`decoder`](Self::decoder), then changed.
///
/// What the constructors and the other methods derive something from cannot be set apart from it: attention, whose mask a
/// decoder depends on, is changed by [`with_attention`](Self::with_attention), and the number of layers, from which weights and
/// residuals are scaled, stays that of the constructor.
///
/// ```
/// use dilated_attention::DilatedAttentionConfig;
/// use dilated_attention::longnet::{LongNetConfig, OutputProjection};
/// let attention = DilatedAttentionConfig::new(8, 32, &[256, 1024], &[1, 4])?;
/// let mut config = LongNetConfig::decoder(attention, 4, 1024);
/// config.vocab_size = Some(256);
/// config.output_projection = OutputProjection::Own;
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
    /// Layer norms come after the residuals instead of before the sublayers.
    pub post_norm: bool,
    /// The feed-forward networks have a layer norm inside (sub-LN).
    pub sub_norm: bool,
    /// Layer norms inside of self-attention.
    pub projection_norm: ProjectionNorm,
    /// Type of everything between the layers' operations: f32, or for inference f16 or bf16, which halves memory and traffic.
    /// Weights, logits and losses are f32, sums are taken in f32; the key-value cache has the type of the activations.
    pub activations: DType,
    /// Factor on residuals (DeepNorm).
    pub residual_scale: f32,
    /// Factor on the weights of value and output projections and of the feed-forward networks at the start.
    pub initial_gain: f32,
    /// Of the feed-forward networks.
    pub activation: Activation,
    /// Epsilon of all layer norms.
    pub norm_eps: f32,
    /// Base of xPos' scale (torchscale: 512), for relative positions.
    pub xpos_scale_base: Option<f32>,
    /// Attention to an encoder, in each layer.
    pub cross_attention: Option<CrossAttentionConfig>,
    /// Number of tokens, for models that embed them.
    pub vocab_size: Option<usize>,
    /// Factor on the embedding.
    pub embedding_scale: f32,
    /// Most positions, for models that learn an embedding of each.
    pub learned_positions: Option<usize>,
    /// Layer norm after the embedding.
    pub embedding_norm: bool,
    /// Layer norm after the last layer.
    pub final_norm: bool,
    /// Which weights make logits.
    pub output_projection: OutputProjection,
    /// Probability that an element of a sublayer's output, or of the embedding, is dropped in training.
    pub dropout: f32,
    /// Probability that an element of an activation is dropped in training.
    pub activation_dropout: f32,
}

impl LongNetConfig {
    /// An encoder as LongNet and GigaPath have it: pre-norm with sub-LN, GELU, a final norm; no embedding. Heads times their
    /// size is the width of the model; self-attention has the mask of `attention`.
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
            // Below two layers the logarithm of 2 is left.
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

    /// The same with a causal mask.
    pub fn decoder(attention: DilatedAttentionConfig, num_layers: usize, ffn_dim: usize) -> Self {
        Self::encoder(attention.with_mask(Mask::Causal), num_layers, ffn_dim)
    }

    /// The same with other self-attention. A causal mask stays: only `attention`'s heads, branches and semantics replace those
    /// of before.
    pub fn with_attention(self, attention: DilatedAttentionConfig) -> Self {
        let attention = match self.attention.mask() {
            Mask::Causal => attention.with_mask(Mask::Causal),
            Mask::Full => attention,
        };
        Self { attention, ..self }
    }

    /// Heads, branches and mask of self-attention; heads times their size is the width of the model.
    pub fn attention(&self) -> &DilatedAttentionConfig {
        &self.attention
    }

    /// Number of layers.
    pub fn num_layers(&self) -> usize {
        self.num_layers
    }

    /// Layer norms before the sublayers and at the end alone, none inside; residuals as they are.
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

    /// Layer norms after the residuals, none inside and none at the end.
    pub fn with_post_norm(self) -> Self {
        Self {
            post_norm: true,
            final_norm: false,
            ..self.with_pre_norm()
        }
    }

    /// DeepNorm for a model of these layers alone: post-norm, residuals times `(2 L)^(1/4)`, weights divided by
    /// `(8 L)^(1/4)` at the start.
    pub fn with_deep_norm(self) -> Self {
        // Without layers there is nothing to scale.
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

    /// `limit`, which holds for a base of 512 and larger ones, for the base of this model.
    fn for_base(&self, limit: usize) -> usize {
        let base = f64::from(self.xpos_scale_base.unwrap_or(512.0));
        (limit as f64 * (base / 512.0).min(1.0)) as usize
    }

    /// Positions of `seq_len` rows of an item from `first` on, of a sequence that will have `total`.
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

    /// As [`positions`](Self::positions), with a centre that does not depend on the length: for tokens that come one by one.
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

    /// Positions that queries and keys which meet always share: the longest segment, if all others lie within one.
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

    /// Whether rows of a branch may move away from their token (torchscale's rows where the rate does not divide the length).
    pub(super) fn rows_move(&self) -> bool {
        let moves = |branch: &crate::config::Branch| {
            !branch.segment_length.is_multiple_of(branch.dilation_rate)
        };
        self.attention.output_rows() == crate::config::OutputRows::Torchscale
            && self.attention.heads() == Heads::EveryBranch
            && self.attention.branches().iter().any(moves)
    }
}
