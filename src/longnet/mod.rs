//! LongNet: transformers whose self-attention is dilated.
//!
//! ```text
//! tokens -> embedding (+ learned positions, norm) -> layers of residual blocks -> final norm -> logits
//! ```
//! A [`LongNet`] is an encoder, a decoder or a causal language model, depending on its [`LongNetConfig`]: pre-norm, post-norm,
//! sub-LN or DeepNorm; with xPos, learned positions or neither; with cross attention to an encoder or without ([`EncoderDecoder`]
//! joins two models). Parameters have the names that torchscale gives them (`architecture/encoder.py`, `decoder.py`,
//! `model/LongNet.py`), so its checkpoints load without renaming. A model holds its options and the choice of its kernels. Its
//! weights are [`Parameters`], made by [`LongNet::initial_weights`] or loaded from a file. In training, a forward saves the tensors
//! that each block needs, or only the input of each layer, from which the backward computes the rest again ([`Recompute::Layers`]).
//! Decoding ([`KvCache`]) computes one token at a time, from the keys and values of the tokens before; [`LongNet::generate`] draws
//! tokens with it.

mod backward;
mod cache;
mod config;
mod decode;
mod encoder_decoder;
mod flop;
mod forward;
mod generate;
mod loss;
#[cfg(not(target_arch = "wasm32"))]
mod out_of_core;
#[cfg(not(target_arch = "wasm32"))]
mod predict;
mod warm_up;

pub use backward::{Recompute, Saved};
pub use cache::KvCache;
pub use config::{CrossAttentionConfig, LongNetConfig, OutputProjection};
pub use encoder_decoder::EncoderDecoder;
pub use forward::{Call, Input, Output};
pub use generate::{GenerateOptions, Generation};
pub use loss::Loss;
#[cfg(not(target_arch = "wasm32"))]
pub use predict::{Rates, StepPrediction, StepPredictor};

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

/// Row of the table of learned positions for the first token. As in fairseq and torchscale, the rows before it are for padding.
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
    /// Number of the model's first dropout.
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

    /// As [`new`](Self::new), but declares the parameters in the caller's list, with `prefix` before their names. The model's own
    /// list stays empty until [`join`](Self::join) sets it, when the caller's list is complete.
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

    /// Sets the complete list that holds the parameters of this model, and perhaps of others.
    pub(crate) fn join(&mut self, list: &Arc<ParameterList>) {
        self.list = list.clone();
    }

    /// The options.
    pub fn config(&self) -> &LongNetConfig {
        &self.config
    }

    /// Names, shapes and initial values of the parameters.
    pub fn parameters(&self) -> &Arc<ParameterList> {
        &self.list
    }

    /// Initial weights for training; random ones follow from `seed`. They are uploaded and submitted.
    ///
    /// # Errors
    /// The errors of leasing, uploading and submitting.
    pub fn initial_weights(&self, context: &Context, seed: u64) -> Result<Parameters> {
        Parameters::initial(context, &self.list, seed)
    }

    /// A set of gradients, all 0.
    ///
    /// # Errors
    /// The errors of leasing.
    pub fn zero_gradients(&self, recorder: &mut Recorder) -> Result<Parameters> {
        Parameters::zeros(recorder, &self.list, "gradients")
    }

    fn width(&self) -> usize {
        self.config.attention().embed_dim()
    }

    /// Checks that the model can be trained: its activations must be f32.
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

/// Declares the blocks of one layer.
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
