//! A whole encoder layer of GigaPath's size: 768 wide, 16 heads of 48, a feed-forward network of 3072, sub-LN.

use std::thread;

use dilated_attention::longnet::{Call, Input, LongNet, LongNetConfig};
use dilated_attention::nn::Parameters;
use dilated_attention::testing::model::{self, Values};
use dilated_attention::{
    AttentionShape, Context, DType, DilatedAttentionConfig, Recorder, Result, Tensor, reference,
};

use serde_json::{Value, json};
use testing::measurement::{error_f32, random, sampled_rows};

use crate::timing::Timed;

const WIDTH: usize = 768;
const FFN: usize = 3072;
const LAYER: &str = "layers.0";

/// Dilated attention as in GigaPath's settings of a million tokens.
fn attention() -> Result<DilatedAttentionConfig> {
    DilatedAttentionConfig::new(
        16,
        48,
        &[1024, 5792, 32_768, 185_363, 1_048_576],
        &[1, 2, 4, 8, 16],
    )
}

pub fn parameters(tokens: usize) -> Value {
    json!({"tokens": tokens, "width": WIDTH, "heads": 16, "ffn": FFN})
}

/// One layer with its weights and its input.
pub struct EncoderLayer {
    tokens: usize,
    config: LongNetConfig,
    model: LongNet,
    weights: Parameters,
    x: Tensor,
    elements: Vec<f32>,
    values: Values,
    flop: f64,
}

impl EncoderLayer {
    pub fn new(context: &Context, tokens: usize) -> Result<Self> {
        let mut config = LongNetConfig::encoder(attention()?, 1, FFN);
        config.final_norm = false;
        let model = LongNet::new(context, config.clone())?;
        let weights = model.initial_weights(context, 1)?;
        let mut recorder = context.recorder("input");
        let mut random = random();
        let elements: Vec<f32> = (0..tokens * WIDTH).map(|_| random()).collect();
        let x = recorder.upload("x", &[1, tokens, WIDTH], &elements)?;
        let downloads = weights.download(&mut recorder)?;
        recorder.submit()?.wait()?;
        let mut values = Values::new();
        for (spec, download) in model.parameters().specs().iter().zip(downloads) {
            let parameter = download.wait()?.into_iter().map(f64::from).collect();
            values.insert(spec.name.clone(), parameter);
        }
        let shape = AttentionShape::new(1, tokens)?;
        let plan = config
            .attention()
            .plan_forward(&shape, DType::F32, context.caps())?;
        let products = 2.0 * (tokens as f64) * (4 * WIDTH * WIDTH + 2 * WIDTH * FFN) as f64;
        Ok(Self {
            flop: plan.flop as f64 + products,
            tokens,
            config,
            model,
            weights,
            x,
            elements,
            values,
        })
    }

    /// A projection of many rows, on all processors.
    fn project(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let name = format!("{LAYER}.self_attn.{name}");
        let threads = thread::available_parallelism().map_or(1, usize::from);
        let rows = (x.len() / WIDTH).div_ceil(threads);
        thread::scope(|scope| {
            let part = |x| {
                let name = &name;
                scope.spawn(move || model::linear(&self.values, name, x, WIDTH))
            };
            let parts: Vec<_> = x.chunks(rows * WIDTH).map(part).collect();
            let parts = parts.into_iter().map(|part| part.join().expect("no panic"));
            parts.flatten().collect()
        })
    }

    /// Sampled rows of the layer's output in f64. Keys and values are needed of all rows, the rest only of these.
    fn expected(&self) -> Result<Vec<f64>> {
        let eps = self.config.norm_eps;
        let norm = |name: &str, x: &[f64]| {
            model::layer_norm(&self.values, &format!("{LAYER}.{name}"), x, eps)
        };
        let rows = sampled_rows(self.tokens);
        let x: Vec<f64> = self.elements.iter().map(|x| f64::from(*x)).collect();
        let normal = norm("self_attn_layer_norm", &x);
        let [q, k, v] = ["q_proj", "k_proj", "v_proj"].map(|name| self.project(name, &normal));
        let shape = AttentionShape::new(1, self.tokens)?;
        let attended = reference::forward_rows(self.config.attention(), &shape, &q, &k, &v, &rows)?;
        let inner = norm("self_attn.inner_attn_ln", &attended.out);
        let mut sum = self.project("out_proj", &inner);
        let residual = rows.iter().flat_map(|&(_, row)| &x[row * WIDTH..][..WIDTH]);
        sum.iter_mut().zip(residual).for_each(|(sum, x)| *sum += x);
        let network = model::FeedForward {
            activations: DType::F32,
            embed_dim: WIDTH,
            ffn_dim: FFN,
            activation: self.config.activation,
            norm_eps: Some(eps),
        };
        let normal = norm("final_layer_norm", &sum);
        let out = network.forward(&self.values, &format!("{LAYER}.ffn"), &normal);
        Ok(out.iter().zip(&sum).map(|(out, sum)| out + sum).collect())
    }

    fn activation_bytes(&self) -> u64 {
        self.elements.len() as u64 * 4
    }
}

impl Timed for EncoderLayer {
    fn work(&self) -> f64 {
        self.flop
    }

    fn record(&self, recorder: &mut Recorder) -> Result<Vec<Tensor>> {
        let call = Call::new(AttentionShape::new(1, self.tokens)?);
        let input = Input::Embedded(&self.x);
        let output = self
            .model
            .forward(recorder, &self.weights, input, &call, false)?;
        Ok(vec![output.features])
    }

    fn error(&self, results: &[Vec<f32>]) -> Result<f64> {
        let rows = sampled_rows(self.tokens).into_iter();
        let sampled = rows.flat_map(|(_, row)| &results[0][row * WIDTH..][..WIDTH]);
        Ok(error_f32(sampled.copied(), &self.expected()?))
    }

    fn held_bytes(&self) -> u64 {
        self.activation_bytes() + 4 * self.model.parameters().num_elements() as u64
    }

    /// Weights, input, output.
    fn floor_bytes(&self) -> u64 {
        self.held_bytes() + self.activation_bytes()
    }
}
