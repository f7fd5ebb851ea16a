//! A slide of more tiles than one buffer holds, checked: bytes against the plan, sampled tokens against double precision.
//! `cargo run --release --example large_slide -- --help`.
//!
//! GigaPath's slide encoder with random weights encodes random tiles within WebGPU's default limits (or smaller ones). What the
//! host computes again in f64, of the sampled tokens alone: the input of the layers, the output of the first layer, the encoded
//! tokens, and the attention weights of CLS. The embeddings are checked against those of all tokens that came back.

use std::collections::{BTreeSet, HashMap};
use std::error::Error;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use dilated_attention::models::StagedModel;
use dilated_attention::models::gigapath::{
    Slide, SlideEncoder, SlideEncoderConfig, SlideOutput, SlideOutputs,
};
use dilated_attention::reference;
use dilated_attention::testing::model::{FeedForward, layer_norm, linear};
use dilated_attention::{AttentionShape, Context, ContextOptions, DType, wgpu};
use program::{say, say_part};

/// Encodes a slide of more tiles than one buffer holds, and checks bytes and sampled tokens
///
/// Exits with 0 when all holds, 1 when something does not, 2 when it could not be checked.
#[derive(Parser)]
#[command(verbatim_doc_comment)]
struct Options {
    /// Tiles of the slide
    #[arg(long, default_value_t = 200_000)]
    tiles: usize,
    /// Features of a tile
    #[arg(long, default_value_t = 64)]
    features: usize,
    /// Tokens whose outputs are computed again in f64
    #[arg(long, default_value_t = 64)]
    samples: usize,
    /// MiB of the largest buffer; a binding is half of it
    #[arg(long, default_value_t = 256)]
    max_buffer_mib: u64,
}

type Values = HashMap<String, Vec<f64>>;

/// The largest error that passes, of the largest value: 128 units in the last place of an f32.
const TOLERANCE: f64 = 1.0 / (1u64 << 16) as f64;

fn main() -> ExitCode {
    program::run_or(2, run)
}

fn run(options: Options) -> Result<ExitCode, Box<dyn Error>> {
    let mut config = SlideEncoderConfig::base();
    config.num_layers = 1;
    config.feature_dim = options.features;
    let limits = wgpu::Limits {
        max_buffer_size: options.max_buffer_mib << 20,
        max_storage_buffer_binding_size: options.max_buffer_mib << 19,
        ..Default::default()
    };
    let context = ContextOptions::new().with_limits(limits).open_blocking()?;
    let adapter = context.adapter_info();
    say!("adapter   {}, {}", adapter.name, adapter.driver_info);
    let outputs = SlideOutputs {
        layers: true,
        states: vec![0, 1],
        encoded: true,
        attention: vec![0],
        ..Default::default()
    };
    let plan = SlideEncoder::plan_for(&context, &config, &[options.tiles], &outputs)?;
    say_part!("{plan}");

    let encoder = SlideEncoder::new(&context, config.clone())?;
    let weights = encoder.initial_weights(&context, 1)?;
    let values = download(&context, &weights)?;
    let mut random = Random(7);
    let features: Vec<f32> = (0..options.tiles * options.features)
        .map(|_| random.number())
        .collect();
    let side = (options.tiles as f64).sqrt().ceil() as usize;
    let coords: Vec<[f32; 2]> = (0..options.tiles)
        .map(|tile| [tile % side, tile / side].map(|cell| (cell * config.tile_size) as f32))
        .collect();
    let slide = Slide {
        features: &features,
        coords: &coords,
    };
    context.wait()?;
    context.pool().force_trim();
    context.pool().reset_peaks();
    let begin = Instant::now();
    let output = encoder
        .run(&context, &weights, &[slide], &outputs)?
        .blocking()?;
    let seconds = begin.elapsed().as_secs_f64();
    say!(
        "encoded   {seconds:.1} s, {:.1} GFLOP/s",
        plan.flop as f64 / 1e9 / seconds
    );
    let peak = context.pool().stats().requested_bytes.peak;
    let mut holds = peak == plan.requested_bytes;
    say!(
        "bytes     planned {}, measured {peak}: {}",
        plan.requested_bytes,
        verdict(holds)
    );

    let tokens = output.tokens;
    let mut samples = BTreeSet::from([0, 1, tokens - 1]);
    while samples.len() < options.samples.min(tokens) {
        samples.insert((random.next() % tokens as u64) as usize);
    }
    let samples: Vec<usize> = samples.into_iter().collect();
    let begin = Instant::now();
    let check = Check {
        config: &config,
        values: &values,
        output: &output,
        samples: &samples,
    };
    for (what, worst, largest) in check.all(&slide)? {
        let passes = worst <= TOLERANCE * largest;
        holds &= passes;
        say!(
            "{what:<28} largest {largest:9.3e}, worst error {worst:9.3e}: {}",
            verdict(passes)
        );
    }
    say!("checked   {:.1} s", begin.elapsed().as_secs_f64());
    Ok(ExitCode::from(u8::from(!holds)))
}

fn verdict(holds: bool) -> &'static str {
    if holds { "ok" } else { "WRONG" }
}

/// Numbers that are the same in every run (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Between -1 and 1.
    fn number(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

fn download(
    context: &Context,
    weights: &dilated_attention::nn::Parameters,
) -> dilated_attention::Result<Values> {
    let mut recorder = context.recorder("weights");
    let downloads = weights.download(&mut recorder)?;
    recorder.submit()?;
    let specs = weights.list().specs().iter();
    specs
        .zip(downloads)
        .map(|(spec, download)| Ok((spec.name.clone(), widened(&download.wait()?))))
        .collect()
}

fn widened(values: &[f32]) -> Vec<f64> {
    values.iter().map(|value| f64::from(*value)).collect()
}

/// Applies `row_wise` to all rows of `x`, on all processors.
fn on_all_rows(x: &[f64], width: usize, row_wise: impl Fn(&[f64]) -> Vec<f64> + Sync) -> Vec<f64> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let rows = (x.len() / width).div_ceil(threads).max(1);
    std::thread::scope(|scope| {
        let of_chunk = |chunk| {
            let row_wise = &row_wise;
            scope.spawn(move || row_wise(chunk))
        };
        let running: Vec<_> = x.chunks(rows * width).map(of_chunk).collect();
        let done = running.into_iter().map(|thread| thread.join());
        done.flat_map(|rows| rows.expect("plain arithmetic does not panic"))
            .collect()
    })
}

/// What is checked, and against what.
struct Check<'a> {
    config: &'a SlideEncoderConfig,
    values: &'a Values,
    output: &'a SlideOutput,
    samples: &'a [usize],
}

/// What was checked, the worst error, the largest value.
type Line = (&'static str, f64, f64);

impl Check<'_> {
    fn width(&self) -> usize {
        self.config.width()
    }

    fn row<'r, T>(&self, rows: &'r [T], token: usize) -> &'r [T] {
        &rows[token * self.width()..][..self.width()]
    }

    /// Compares rows of the samples, in order, with those tokens of `given`.
    fn compare(&self, what: &'static str, given: &[f32], expected: &[f64]) -> Line {
        let given = self
            .samples
            .iter()
            .flat_map(|token| self.row(given, *token));
        let errors = given.zip(expected).map(|(a, b)| (f64::from(*a) - b).abs());
        (what, worst(errors), largest(expected))
    }

    fn all(&self, slide: &Slide<'_>) -> Result<Vec<Line>, Box<dyn Error>> {
        let [(_, input), (_, state)] = &self.output.states[..] else {
            return Err("two states were asked for".into());
        };
        let encoded = self.output.encoded.as_deref().ok_or("was asked for")?;
        let mut lines = vec![self.compare("state 0", input, &self.embedded(slide))];
        let (expected, cls_weights) = self.layer(&widened(input))?;
        lines.push(self.compare("state 1", state, &expected));
        let eps = self.config.encoder_eps;
        let norm = |x: &[f64]| layer_norm(self.values, "encoder.layer_norm", x, eps);
        lines.push(self.compare("encoded", encoded, &norm(&expected)));

        let map = &self.output.attention[0].map(0).ok_or("one slide")?;
        let errors = self.samples.iter().zip(&cls_weights);
        let errors = errors.map(|(token, weight)| (f64::from(map[*token]) - weight).abs());
        lines.push(("attention of CLS", worst(errors), largest(&cls_weights)));

        // The last embeddings are of the tokens after the encoder's norm; those of states, of the states as they are.
        let embeddings = [
            (
                "CLS, pool after the layer",
                encoded,
                &self.output.cls,
                &self.output.pool,
            ),
            (
                "CLS, pool of state 0",
                input,
                &self.output.layers[0].cls,
                &self.output.layers[0].pool,
            ),
            (
                "CLS, pool of state 1",
                state,
                &self.output.layers[1].cls,
                &self.output.layers[1].pool,
            ),
        ];
        for (what, tokens, cls, pool) in embeddings {
            let norm = |x: &[f64]| layer_norm(self.values, "norm", x, self.config.norm_eps);
            let width = self.width();
            let mut mean = vec![0.0; width];
            for row in tokens[width..].chunks(width) {
                for (mean, value) in mean.iter_mut().zip(row) {
                    *mean += f64::from(*value);
                }
            }
            let tiles = (tokens.len() / width - 1) as f64;
            mean.iter_mut().for_each(|mean| *mean /= tiles);
            let expected = [norm(&widened(&tokens[..width])), norm(&mean)].concat();
            let errors = cls.iter().chain(pool).zip(&expected);
            let errors = errors.map(|(a, b)| (f64::from(*a) - b).abs());
            lines.push((what, worst(errors), largest(&expected)));
        }
        Ok(lines)
    }

    /// The inputs of the layers.
    fn embedded(&self, slide: &Slide<'_>) -> Vec<f64> {
        let cells = self.config.cells(slide.coords).expect("were encoded");
        let count = self.config.feature_dim;
        let of_token = |token: &usize| match token.checked_sub(1) {
            None => self.values["cls_token"].clone(),
            Some(tile) => {
                let features = widened(&slide.features[tile * count..][..count]);
                let x = linear(self.values, "patch_embed.proj", &features, count);
                let position = self.config.position_vector(cells[tile]);
                let sums = x.iter().zip(position).map(|(x, p)| x + f64::from(p));
                sums.collect()
            }
        };
        self.samples.iter().flat_map(of_token).collect()
    }

    /// The outputs of the layer with input `x`, and the attention of CLS to the samples, averaged over heads.
    fn layer(&self, x: &[f64]) -> Result<(Vec<f64>, Vec<f64>), Box<dyn Error>> {
        const LAYER: &str = "encoder.layers.0";
        let (width, eps, values) = (self.width(), self.config.encoder_eps, self.values);
        let attention = &self.config.attention;
        let name = |name: &str| format!("{LAYER}.{name}");
        let normal = on_all_rows(x, width, |x| {
            layer_norm(values, &name("self_attn_layer_norm"), x, eps)
        });
        let project = |layer: &str, x: &[f64]| {
            let layer = name(&format!("self_attn.{layer}"));
            on_all_rows(x, width, |x| linear(values, &layer, x, width))
        };
        let (k, v) = (project("k_proj", &normal), project("v_proj", &normal));
        // The row that is written to a token may have another token's query.
        let mut q = vec![0.0; x.len()];
        let tokens = x.len() / width;
        for token in self.samples {
            for branch in attention.branches() {
                let length = branch.segment_length.min(tokens);
                let stride = length.next_multiple_of(branch.dilation_rate);
                for query in [token - token / stride * (stride - length), *token] {
                    let row = project("q_proj", self.row(&normal, query));
                    q[query * width..][..width].copy_from_slice(&row);
                }
            }
        }
        let shape = AttentionShape::new(1, tokens)?;
        let rows: Vec<_> = self.samples.iter().map(|token| (0, *token)).collect();
        let mixed = reference::forward_rows(attention, &shape, &q, &k, &v, &rows)?;
        let cls = self.weights_of_cls(&q, &k, &mixed.softmax_lse);

        let inner = layer_norm(values, &name("self_attn.inner_attn_ln"), &mixed.out, eps);
        let projected = linear(values, &name("self_attn.out_proj"), &inner, width);
        let residual = self.samples.iter().flat_map(|token| self.row(x, *token));
        let x: Vec<f64> = residual.zip(projected).map(|(x, y)| x + y).collect();
        let network = FeedForward {
            embed_dim: width,
            ffn_dim: self.config.ffn_dim,
            activation: dilated_attention::ops::Activation::Gelu,
            norm_eps: Some(eps),
            activations: DType::F32,
        };
        let normal = layer_norm(values, &name("final_layer_norm"), &x, eps);
        let y = network.forward(values, &name("ffn"), &normal);
        Ok((x.iter().zip(y).map(|(x, y)| x + y).collect(), cls))
    }

    /// CLS is token 0: in each branch it is the first row of the first segment, of the heads without an offset.
    fn weights_of_cls(&self, q: &[f64], k: &[f64], lse: &[f64]) -> Vec<f64> {
        let attention = &self.config.attention;
        let (heads, dim) = (attention.num_heads(), attention.head_dim());
        let tokens = k.len() / self.width();
        let scale = f64::from(attention.softmax_scale());
        let weight = |token: usize| {
            let mut sum = 0.0;
            for branch in attention.branches() {
                let rate = branch.dilation_rate;
                if token >= branch.segment_length.min(tokens) || !token.is_multiple_of(rate) {
                    continue;
                }
                for head in (0..heads).filter(|head| head / heads.div_ceil(rate) == 0) {
                    let [q, k] =
                        [&self.row(q, 0), &self.row(k, token)].map(|row| &row[head * dim..][..dim]);
                    let score: f64 = q.iter().zip(k).map(|(q, k)| q * k).sum();
                    // The samples begin with CLS.
                    sum += (scale * score - lse[head]).exp() / heads as f64;
                }
            }
            sum
        };
        self.samples.iter().map(|token| weight(*token)).collect()
    }
}

fn worst(errors: impl Iterator<Item = f64>) -> f64 {
    errors.fold(0.0, |worst, error| match error > worst || error.is_nan() {
        true => error,
        false => worst,
    })
}

fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |most, value| value.abs().max(most))
}
