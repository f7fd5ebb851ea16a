//! The layer's output for some tokens in f64, from the definition of dilated attention and all tokens that they see.

use std::collections::HashMap;

use dilated_attention::longnet::LongNetConfig;
use dilated_attention::nn::Parameters;
use dilated_attention::ops::Activation;
use dilated_attention::testing::model::{FeedForward, layer_norm, linear};
use dilated_attention::{Context, DType, Result};

use crate::{HEAD_DIM, HEADS, WIDTH, embed};

/// Parameters by name.
pub type Values = HashMap<String, Vec<f64>>;

pub fn download(context: &Context, weights: &Parameters) -> Result<Values> {
    let mut recorder = context.recorder("weights");
    let downloads = weights.download(&mut recorder)?;
    recorder.submit()?;
    let specs = weights.list().specs().iter();
    let wide = |values: Vec<f32>| values.iter().map(|value| f64::from(*value)).collect();
    specs
        .zip(downloads)
        .map(|(spec, download)| Ok((spec.name.clone(), wide(download.wait()?))))
        .collect()
}

pub struct Layer<'a> {
    pub config: &'a LongNetConfig,
    pub values: &'a Values,
    pub bases: &'a [u8],
}

/// What the layer makes of a token.
pub struct Exact {
    pub output: Vec<f64>,
    /// Tokens that it sees, each with its weight; those of several heads one after the other.
    pub weights: Vec<(usize, f64)>,
}

fn name(name: &str) -> String {
    format!("layers.0.{name}")
}

impl Layer<'_> {
    /// Those of `tokens`, computed on all processors.
    pub fn outputs(&self, tokens: &[usize]) -> Vec<Exact> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let share = tokens.len().div_ceil(threads).max(1);
        std::thread::scope(|scope| {
            let of_share = |tokens: &'_ [usize]| {
                let tokens = tokens.to_vec();
                scope.spawn(move || {
                    let of_token = |token: &usize| self.output(*token);
                    tokens.iter().map(of_token).collect::<Vec<_>>()
                })
            };
            let running: Vec<_> = tokens.chunks(share).map(of_share).collect();
            let done = running.into_iter().map(|thread| thread.join());
            done.flat_map(|part| part.expect("plain arithmetic does not panic"))
                .collect()
        })
    }

    fn input(&self, token: usize) -> Vec<f64> {
        let mut row = [0f32; WIDTH];
        embed(self.bases[token], token, &mut row);
        row.map(f64::from).to_vec()
    }

    fn norm(&self, layer: &str, x: &[f64]) -> Vec<f64> {
        layer_norm(self.values, &name(layer), x, self.config.norm_eps)
    }

    /// A projection of the normalised input of a token.
    fn project(&self, layer: &str, token: usize) -> Vec<f64> {
        let x = self.norm("self_attn_layer_norm", &self.input(token));
        linear(self.values, &name(&format!("self_attn.{layer}")), &x, WIDTH)
    }

    fn output(&self, token: usize) -> Exact {
        let q = self.project("q_proj", token);
        let attention = self.config.attention();
        let scale = f64::from(attention.softmax_scale());
        let tokens = self.bases.len();
        let mut attended = vec![0.0; WIDTH];
        let mut weights = Vec::new();
        // Scores of the keys are kept, because keys and values are computed once for all heads.
        let mut seen: Vec<(usize, usize)> = Vec::new();
        for branch in attention.branches() {
            let (length, rate) = (branch.segment_length.min(tokens), branch.dilation_rate);
            let begin = token / length * length;
            let end = tokens.min(begin + length);
            for head in 0..HEADS {
                // Groups of heads begin at one token after the other.
                let offset = head / HEADS.div_ceil(rate) % rate;
                if token >= begin + offset && (token - begin - offset).is_multiple_of(rate) {
                    seen.extend((begin + offset..end).step_by(rate).map(|key| (key, head)));
                }
            }
        }
        seen.sort_unstable();
        let (mut sums, mut scores) = ([0.0; HEADS], Vec::new());
        let (mut at, mut k, mut v) = (usize::MAX, Vec::new(), Vec::new());
        for (key, head) in seen {
            if key != at {
                (at, k, v) = (
                    key,
                    self.project("k_proj", key),
                    self.project("v_proj", key),
                );
            }
            let elements = head * HEAD_DIM..(head + 1) * HEAD_DIM;
            let pairs = q[elements.clone()].iter().zip(&k[elements.clone()]);
            let score: f64 = pairs.map(|(q, k)| q * k).sum();
            // Scores are far below 700, where this would overflow.
            let weight = (scale * score).exp();
            sums[head] += weight;
            for (out, v) in attended[elements.clone()].iter_mut().zip(&v[elements]) {
                *out += weight * v;
            }
            scores.push((key, head, weight));
        }
        for (out, element) in attended.iter_mut().zip(0..) {
            // What no branch covers is 0.
            if sums[element / HEAD_DIM] > 0.0 {
                *out /= sums[element / HEAD_DIM];
            }
        }
        for (key, head, weight) in scores {
            weights.push((key, weight / sums[head] / HEADS as f64));
        }
        let inner = self.norm("self_attn.inner_attn_ln", &attended);
        let projected = linear(self.values, &name("self_attn.out_proj"), &inner, WIDTH);
        let add = |x: &[f64], y: Vec<f64>| x.iter().zip(y).map(|(x, y)| x + y).collect();
        let x: Vec<f64> = add(&self.input(token), projected);
        let network = FeedForward {
            embed_dim: WIDTH,
            ffn_dim: self.config.ffn_dim,
            activation: Activation::Gelu,
            norm_eps: Some(self.config.norm_eps),
            activations: DType::F32,
        };
        let normal = self.norm("final_layer_norm", &x);
        let output = add(&x, network.forward(self.values, &name("ffn"), &normal));
        Exact { output, weights }
    }
}
