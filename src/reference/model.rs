//! Layers with parameters and whole LongNets in f64, forward only, in plain loops. [`nn`](crate::nn) and
//! [`longnet`](crate::longnet) are compared with them; gradients are compared with finite differences of these functions. There is
//! no dropout.
//!
//! Parameters are a map from names to values; weights of linear layers are (out, in), row-major. Activations are (batch, token,
//! element). Where the options say that activations are stored in half precision, the result of every operation is rounded to it,
//! as a plain implementation would. Nothing else is rounded, and f32 activations are not rounded at all. Missing names and lengths
//! that do not fit panic, because the callers are tests.
//!
//! ```text
//! block, pre-norm     x + sublayer(norm(x))                      the residual x is multiplied by residual_scale
//! block, post-norm    norm(x + sublayer(x))
//! multi-head          out_proj(norm(attention(turn(norm(q_proj(x))), turn(norm(k_proj(memory))), v_proj(memory))))
//! feed-forward        fc2(norm(activation(fc1(x))))
//! model               norm(blocks(norm(scale * embedding + position)))
//! ```

use std::collections::HashMap;

use super::plain::rounded_wide;
use super::{forward, layers};
use crate::config::{AttentionShape, DilatedAttentionConfig};
use crate::device::DType;
use crate::error::Result;
use crate::longnet::{LongNetConfig, OutputProjection};
use crate::nn::ProjectionNorm;
use crate::ops::Activation;

/// Parameters by name.
pub type Values = HashMap<String, Vec<f64>>;

/// Rows of the table of learned positions that come before the row of the first token (fairseq reserves them for padding).
const ROWS_BEFORE_POSITIONS: usize = 2;

fn value<'a>(values: &'a Values, layer: &str, name: &str) -> &'a [f64] {
    let name = format!("{layer}.{name}");
    values
        .get(&name)
        .unwrap_or_else(|| panic!("no parameter {name}"))
}

/// `x W^T + b` with `layer.weight` and, if there is one, `layer.bias`.
///
/// # Panics
/// Without the weight, or when lengths do not fit.
pub fn linear(values: &Values, layer: &str, x: &[f64], inner: usize) -> Vec<f64> {
    let bias = values.get(&format!("{layer}.bias"));
    let weight = value(values, layer, "weight");
    layers::linear(x, weight, bias.map_or(&[], Vec::as_slice), inner)
}

/// Layer norm of rows with `layer.weight` and `layer.bias`.
///
/// # Panics
/// Without these, or when lengths do not fit.
pub fn layer_norm(values: &Values, layer: &str, x: &[f64], eps: f32) -> Vec<f64> {
    let [weight, bias] = ["weight", "bias"].map(|name| value(values, layer, name));
    layers::layer_norm(x, weight, bias, f64::from(eps))
}

/// Options of a feed-forward network.
#[derive(Clone, Copy, Debug)]
pub struct FeedForward {
    /// Elements of a row of the input.
    pub embed_dim: usize,
    /// Elements of a row between the two linear layers.
    pub ffn_dim: usize,
    /// Activation between the two linear layers.
    pub activation: Activation,
    /// Epsilon of the layer norm between them, if there is one.
    pub norm_eps: Option<f32>,
    /// Type that activations are rounded to.
    pub activations: DType,
}

impl FeedForward {
    /// The output of the network whose parameters begin with `name`, for the input `x`.
    ///
    /// # Panics
    /// When a parameter is missing or lengths do not fit.
    pub fn forward(&self, values: &Values, name: &str, x: &[f64]) -> Vec<f64> {
        let stored = |x| rounded_wide(self.activations, x);
        let mut hidden = stored(linear(values, &format!("{name}.fc1"), x, self.embed_dim));
        for value in &mut hidden {
            *value = match self.activation {
                Activation::Identity => *value,
                Activation::Relu => layers::relu(*value),
                Activation::Gelu => layers::gelu(*value),
                Activation::Silu => layers::silu(*value),
            };
        }
        hidden = stored(hidden);
        if let Some(eps) = self.norm_eps {
            hidden = stored(layer_norm(
                values,
                &format!("{name}.ffn_layernorm"),
                &hidden,
                eps,
            ));
        }
        stored(linear(
            values,
            &format!("{name}.fc2"),
            &hidden,
            self.ffn_dim,
        ))
    }
}

/// Options of multi-head attention.
#[derive(Clone, Copy, Debug)]
pub struct MultiheadAttention<'a> {
    /// Options of the attention itself.
    pub attention: &'a DilatedAttentionConfig,
    /// Which norms stand between projections and attention.
    pub norm: ProjectionNorm,
    /// Epsilon of these norms.
    pub norm_eps: f32,
    /// Base of the xPos scale; `None` for attention without xPos.
    pub xpos_scale_base: Option<f32>,
    /// Type that activations are rounded to.
    pub activations: DType,
}

impl MultiheadAttention<'_> {
    /// The output of the attention whose parameters begin with `name`: queries from `x`, keys and values from `memory`, which is
    /// `x` in self-attention.
    ///
    /// # Errors
    /// As [`forward`].
    ///
    /// # Panics
    /// When a parameter is missing or lengths do not fit.
    pub fn forward(
        &self,
        values: &Values,
        name: &str,
        shape: &AttentionShape,
        x: &[f64],
        memory: &[f64],
    ) -> Result<Vec<f64>> {
        let width = self.attention.embed_dim();
        let stored = |x| rounded_wide(self.activations, x);
        let project =
            |layer: &str, x: &[f64]| stored(linear(values, &format!("{name}.{layer}"), x, width));
        let norm = |layer: &str, wanted: bool, x: Vec<f64>| match wanted {
            true => stored(layer_norm(
                values,
                &format!("{name}.{layer}"),
                &x,
                self.norm_eps,
            )),
            false => x,
        };
        let query_key = self.norm == ProjectionNorm::QueryKey;
        let q = norm("q_ln", query_key, project("q_proj", x));
        let k = norm("k_ln", query_key, project("k_proj", memory));
        let v = project("v_proj", memory);
        let q = stored(self.turn(&q, shape.seq_len(), 1.0));
        let k = stored(self.turn(&k, shape.key_len(), -1.0));
        let mixed = stored(forward(self.attention, shape, &q, &k, &v)?.out);
        let mixed = match self.norm {
            ProjectionNorm::None => mixed,
            ProjectionNorm::Inner => norm("inner_attn_ln", true, mixed),
            ProjectionNorm::QueryKey => norm("q_ln", true, mixed),
        };
        Ok(project("out_proj", &mixed))
    }

    /// xPos of all heads, for items of `len` tokens. The centre of positions is the middle of an item.
    fn turn(&self, x: &[f64], len: usize, sign: f64) -> Vec<f64> {
        let Some(base) = self.xpos_scale_base else {
            return x.to_vec();
        };
        let (heads, head_dim) = (self.attention.num_heads(), self.attention.head_dim());
        let turned = x.chunks(head_dim).enumerate().flat_map(|(index, head)| {
            let position = (index / heads % len) as f64;
            let exponent = sign * (position - len as f64 / 2.0) / f64::from(base);
            layers::xpos(head, position, exponent)
        });
        turned.collect()
    }
}

/// Input of a model.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// Token ids, one for each token of the batch.
    Tokens(&'a [u32]),
    /// Embeddings, before positions are added and the norm is applied.
    Embeddings(&'a [f64]),
}

/// A LongNet with its parameters, whose names begin with `prefix`.
#[derive(Clone, Copy, Debug)]
pub struct Model<'a> {
    /// The options. Dropout is ignored.
    pub config: &'a LongNetConfig,
    /// The parameters.
    pub values: &'a Values,
    /// Prefix of the names of parameters: empty, `encoder.` or `decoder.`.
    pub prefix: &'a str,
}

impl Model<'_> {
    fn width(&self) -> usize {
        self.config.attention().embed_dim()
    }

    fn name(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn norm(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let eps = self.config.norm_eps;
        self.stored(layer_norm(self.values, &self.name(name), x, eps))
    }

    fn stored(&self, x: Vec<f64>) -> Vec<f64> {
        rounded_wide(self.config.activations, x)
    }

    /// The input of the first layer.
    ///
    /// # Panics
    /// When a parameter is missing or lengths do not fit.
    pub fn embed(&self, shape: &AttentionShape, input: Input<'_>) -> Vec<f64> {
        let width = self.width();
        let mut x = match input {
            Input::Embeddings(x) => x.to_vec(),
            Input::Tokens(ids) => {
                let table = value(self.values, &self.name("embed_tokens"), "weight");
                let scale = f64::from(self.config.embedding_scale);
                let row = |id: &u32| table[*id as usize * width..][..width].iter();
                ids.iter().flat_map(row).map(|x| scale * x).collect()
            }
        };
        x = self.stored(x);
        if self.config.learned_positions.is_some() {
            let table = value(self.values, &self.name("embed_positions"), "weight");
            for (index, x) in x.chunks_mut(width).enumerate() {
                let row = ROWS_BEFORE_POSITIONS + index % shape.seq_len();
                for (x, position) in x.iter_mut().zip(&table[row * width..]) {
                    *x += position;
                }
            }
            x = self.stored(x);
        }
        match self.config.embedding_norm {
            true => self.norm("layernorm_embedding", &x),
            false => x,
        }
    }

    /// The output after the final norm. `memory` is the output of an encoder, with the shape of the attention to it.
    ///
    /// # Errors
    /// As [`forward`].
    ///
    /// # Panics
    /// When a parameter or the memory is missing or lengths do not fit.
    pub fn features(
        &self,
        shape: &AttentionShape,
        input: Input<'_>,
        memory: Option<(&[f64], &AttentionShape)>,
    ) -> Result<Vec<f64>> {
        let mut x = self.embed(shape, input);
        for index in 0..self.config.num_layers() {
            x = self.layer(&format!("layers.{index}"), shape, x, memory)?;
        }
        Ok(match self.config.final_norm {
            true => self.norm("layer_norm", &x),
            false => x,
        })
    }

    fn layer(
        &self,
        name: &str,
        shape: &AttentionShape,
        x: Vec<f64>,
        memory: Option<(&[f64], &AttentionShape)>,
    ) -> Result<Vec<f64>> {
        let config = self.config;
        let own = MultiheadAttention {
            attention: config.attention(),
            norm: config.projection_norm,
            norm_eps: config.norm_eps,
            xpos_scale_base: config.xpos_scale_base,
            activations: config.activations,
        };
        let mut x = self.block(&format!("{name}.self_attn_layer_norm"), &x, |x| {
            let name = self.name(&format!("{name}.self_attn"));
            own.forward(self.values, &name, shape, x, x)
        })?;
        if let Some(cross) = &config.cross_attention {
            let cross = MultiheadAttention {
                attention: &cross.attention,
                norm: cross.projection_norm,
                norm_eps: config.norm_eps,
                xpos_scale_base: None,
                activations: config.activations,
            };
            let (memory, shape) = memory.expect("a memory to attend to");
            x = self.block(&format!("{name}.encoder_attn_layer_norm"), &x, |x| {
                let name = self.name(&format!("{name}.encoder_attn"));
                cross.forward(self.values, &name, shape, x, memory)
            })?;
        }
        let network = FeedForward {
            embed_dim: self.width(),
            ffn_dim: config.ffn_dim,
            activation: config.activation,
            norm_eps: config.sub_norm.then_some(config.norm_eps),
            activations: config.activations,
        };
        self.block(&format!("{name}.final_layer_norm"), &x, |x| {
            Ok(network.forward(self.values, &self.name(&format!("{name}.ffn")), x))
        })
    }

    fn block(
        &self,
        norm: &str,
        x: &[f64],
        sublayer: impl FnOnce(&[f64]) -> Result<Vec<f64>>,
    ) -> Result<Vec<f64>> {
        let inner = match self.config.post_norm {
            true => sublayer(x)?,
            false => sublayer(&self.norm(norm, x))?,
        };
        let scale = f64::from(self.config.residual_scale);
        let sum = x.iter().zip(inner).map(|(x, y)| scale * x + y);
        let sum = self.stored(sum.collect());
        Ok(match self.config.post_norm {
            true => self.norm(norm, &sum),
            false => sum,
        })
    }

    /// Logits of features: a row over the vocabulary for each token.
    ///
    /// # Panics
    /// When a parameter is missing or lengths do not fit.
    pub fn logits(&self, features: &[f64]) -> Vec<f64> {
        let layer = match self.config.output_projection {
            OutputProjection::Tied => "embed_tokens",
            OutputProjection::Own | OutputProjection::None => "output_projection",
        };
        linear(self.values, &self.name(layer), features, self.width())
    }

    /// Mean cross-entropy, in nats, of the logits of `features`, over the rows that have a label.
    ///
    /// # Panics
    /// When lengths do not fit or there is no such label.
    pub fn loss(&self, features: &[f64], labels: &[Option<u32>]) -> f64 {
        let logits = self.logits(features);
        let rows = logits.chunks(logits.len() / labels.len());
        let losses: Vec<f64> = rows
            .zip(labels)
            .filter_map(|(logits, label)| {
                label.map(|label| layers::cross_entropy(logits, label as usize))
            })
            .collect();
        losses.iter().sum::<f64>() / losses.len() as f64
    }
}
