//! LongNet: transformers whose self-attention is dilated.
//!
//! ```text
//! tokens -> embedding (+ learned positions, norm) -> layers of residual blocks -> final norm -> logits
//! ```
//! One [`LongNet`] is an encoder, a decoder or a causal language model, as its [`LongNetConfig`] says: pre-norm, post-norm,
//! sub-LN or DeepNorm; xPos, learned positions or none; with blocks that attend to an encoder or without
//! ([`EncoderDecoder`] joins two). Parameters are called as torchscale calls them (`architecture/encoder.py`, `decoder.py`,
//! `model/LongNet.py`), so its checkpoints load without remapping.
//!
//! A model is plain data and pipelines; its weights are [`Parameters`] made by [`LongNet::initial_weights`] or loaded from a
//! file. Training saves what each block needs, or only the input of each layer and computes the rest again
//! ([`Recompute::Layers`]). Decoding ([`KvCache`]) computes one token at a time from keys and values of those before.

mod backward;
mod cache;
mod config;
mod decode;
mod encoder_decoder;
mod forward;
mod loss;
mod warm_up;

pub use backward::{Recompute, Saved};
pub use cache::KvCache;
pub use config::{CrossAttentionConfig, LongNetConfig, OutputProjection};
pub use encoder_decoder::EncoderDecoder;
pub use forward::{Call, Input, Output};
pub use loss::Loss;

use std::sync::Arc;

use crate::config::DilatedAttentionConfig;
use crate::context::Context;
use crate::device::DType;
use crate::error::{Error, Result};
use crate::nn::{
    Block, FeedForward, FeedForwardConfig, Init, LayerNorm, Linear, MultiheadAttention,
    MultiheadAttentionConfig, ParameterId, ParameterList, Parameters, ProjectionNorm, Sublayer,
};
use crate::recorder::Recorder;

/// Learned positions begin at this row of their table (as in fairseq and torchscale, which keep the first for padding).
const FIRST_POSITION: usize = 2;

/// A transformer with dilated self-attention.
#[derive(Clone, Debug)]
pub struct LongNet {
    config: LongNetConfig,
    list: Arc<ParameterList>,
    embed_tokens: Option<ParameterId>,
    embed_positions: Option<ParameterId>,
    embedding_norm: Option<LayerNorm>,
    layers: Vec<Vec<Block>>,
    final_norm: Option<LayerNorm>,
    output_projection: Option<Linear>,
    /// Number of the first place in it that draws what is dropped.
    first_place: u64,
}

impl LongNet {
    /// Declares the model's parameters and chooses its kernels.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] for options that contradict each other.
    pub fn new(context: &Context, config: LongNetConfig) -> Result<Self> {
        let mut list = ParameterList::new();
        let mut model = Self::declare(context, &mut list, "", config, 0)?;
        model.list = Arc::new(list);
        Ok(model)
    }

    /// As [`new`](Self::new), with parameters in a list of the caller's, their names after `prefix`. The list of the result is
    /// still empty: [`join`](Self::join) sets it when the list is complete.
    pub(crate) fn declare(
        context: &Context,
        list: &mut ParameterList,
        prefix: &str,
        config: LongNetConfig,
        first_place: u64,
    ) -> Result<Self> {
        config.check()?;
        let width = config.attention().embed_dim();
        let table = |rows: usize| {
            (
                [rows, width],
                Init::Normal {
                    std: (width as f32).powf(-0.5),
                },
            )
        };
        let embed_tokens = config.vocab_size.map(|rows| {
            let (shape, init) = table(rows);
            list.add(format!("{prefix}embed_tokens.weight"), &shape, init)
        });
        let embed_positions = config.learned_positions.map(|positions| {
            let (shape, init) = table(positions.saturating_add(FIRST_POSITION));
            list.add(format!("{prefix}embed_positions.weight"), &shape, init)
        });
        let norm = |list: &mut ParameterList, name: &str, wanted: bool| {
            let name = format!("{prefix}{name}");
            wanted.then(|| LayerNorm::new(list, &name, width, config.norm_eps))
        };
        let embedding_norm = norm(list, "layernorm_embedding", config.embedding_norm);
        let mut layers = Vec::new();
        for index in 0..config.num_layers() {
            let name = format!("{prefix}layers.{index}");
            let first_place = first_place + index as u64 * 8;
            layers.push(declare_layer(context, list, &name, &config, first_place)?);
        }
        let final_norm = norm(list, "layer_norm", config.final_norm);
        let output_projection = match (config.output_projection, config.vocab_size, embed_tokens) {
            (OutputProjection::Own, Some(vocab), _) => {
                let name = format!("{prefix}output_projection");
                let init = Init::Normal {
                    std: (width as f32).powf(-0.5),
                };
                Some(Linear::new(list, &name, [width, vocab], init, None))
            }
            (OutputProjection::Tied, _, Some(table)) => Some(Linear::tied(table)),
            _ => None,
        };
        Ok(Self {
            config,
            list: Arc::default(),
            embed_tokens,
            embed_positions,
            embedding_norm,
            layers,
            final_norm,
            output_projection,
            first_place,
        })
    }

    /// Makes the model one of several whose parameters are in `list`.
    pub(crate) fn join(&mut self, list: &Arc<ParameterList>) {
        self.list = list.clone();
    }

    /// The options.
    pub fn config(&self) -> &LongNetConfig {
        &self.config
    }

    /// The parameters' names, shapes and starts.
    pub fn parameters(&self) -> &Arc<ParameterList> {
        &self.list
    }

    /// Weights to train from, submitted; `seed` decides the draws.
    ///
    /// # Errors
    /// Those of leasing, uploading and submitting.
    pub fn initial_weights(&self, context: &Context, seed: u64) -> Result<Parameters> {
        Parameters::initial(context, &self.list, seed)
    }

    /// Gradients, all 0.
    ///
    /// # Errors
    /// Those of leasing.
    pub fn zero_gradients(&self, recorder: &mut Recorder) -> Result<Parameters> {
        Parameters::zeros(recorder, &self.list, "gradients")
    }

    fn width(&self) -> usize {
        self.config.attention().embed_dim()
    }

    /// Whether the model can be trained.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`].
    pub(crate) fn expect_trainable(&self) -> Result<()> {
        match self.config.activations {
            DType::F32 => Ok(()),
            other => Err(Error::InvalidConfig {
                what: "training",
                given: format!("activations of type {other}"),
                need: "f32 activations; half precision is for inference",
            }),
        }
    }

    fn projection(&self) -> Result<&Linear> {
        self.output_projection
            .as_ref()
            .ok_or_else(|| Error::InvalidConfig {
                what: "output projection",
                given: "none".to_owned(),
                need: "one, for logits and losses",
            })
    }
}

/// The blocks of one layer.
fn declare_layer(
    context: &Context,
    list: &mut ParameterList,
    name: &str,
    config: &LongNetConfig,
    first_place: u64,
) -> Result<Vec<Block>> {
    let width = config.attention().embed_dim();
    let mut blocks = Vec::new();
    let mut push = |list: &mut ParameterList, norm: &str, sublayer: Sublayer, number: u64| {
        blocks.push(Block {
            norm: LayerNorm::new(list, &format!("{name}.{norm}"), width, config.norm_eps),
            post_norm: config.post_norm,
            sublayer,
            residual_scale: config.residual_scale,
            dropout: config.dropout,
            place: first_place + number,
        });
    };
    let multihead =
        |attention: &DilatedAttentionConfig, norm: ProjectionNorm, xpos: bool, gain: f32| {
            MultiheadAttentionConfig {
                attention: attention.clone(),
                norm,
                norm_eps: config.norm_eps,
                xpos,
                gain,
            }
        };
    let gain = config.initial_gain;
    let xpos = config.xpos_scale_base.is_some();
    let own = multihead(config.attention(), config.projection_norm, xpos, gain);
    let own = MultiheadAttention::new(context, list, &format!("{name}.self_attn"), &own)?;
    push(
        list,
        "self_attn_layer_norm",
        Sublayer::SelfAttention(own),
        1,
    );
    if let Some(cross) = &config.cross_attention {
        let cross = multihead(&cross.attention, cross.projection_norm, false, 1.0);
        let cross =
            MultiheadAttention::new(context, list, &format!("{name}.encoder_attn"), &cross)?;
        push(
            list,
            "encoder_attn_layer_norm",
            Sublayer::CrossAttention(cross),
            2,
        );
    }
    let network = FeedForwardConfig {
        embed_dim: width,
        ffn_dim: config.ffn_dim,
        activation: config.activation,
        norm_eps: config.sub_norm.then_some(config.norm_eps),
        dropout: config.activation_dropout,
        gain,
    };
    let network = FeedForward::new(list, &format!("{name}.ffn"), &network, first_place + 4);
    push(list, "final_layer_norm", Sublayer::FeedForward(network), 3);
    Ok(blocks)
}
