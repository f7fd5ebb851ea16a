//! Small models with weights drawn at random, on the device and in double precision.

use std::ops::Range;
use std::sync::Arc;

use dilated_attention::longnet::{Call, Input, LongNet, LongNetConfig, Recompute};
use dilated_attention::nn::{ParameterList, Parameters};
use dilated_attention::ops::{IGNORED_LABEL, Labels, TokenIds};
use dilated_attention::testing::model::{self, Values};
use dilated_attention::{AttentionShape, Context, DType, Recorder, Result, Tensor};

use super::numbers::uniform;

/// Where the values of an input are, beside those of the parameters, so that differences by them are taken alike.
pub const INPUT: &str = "input";

pub fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|value| f64::from(*value)).collect()
}

/// The largest absolute value, and something above 0.
pub fn largest(values: &[f64]) -> f64 {
    let max = |max: f64, value: &f64| max.max(value.abs());
    values.iter().fold(f64::MIN_POSITIVE, max)
}

/// Whether each of `given` is `expected` up to `tolerance` times the largest.
#[track_caller]
pub fn assert_within(what: &str, given: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(given.len(), expected.len(), "{what}");
    let largest = largest(expected);
    for (index, (given, expected)) in given.iter().zip(expected).enumerate() {
        let error = (f64::from(*given) - expected).abs();
        assert!(
            error <= tolerance * largest,
            "{what}[{index}] is {given}, expected {expected}, largest {largest}: {:.1e} of it",
            error / largest
        );
    }
}

/// Whether each of `given` is `expected` up to 1e-5 of the largest.
#[track_caller]
pub fn assert_near(what: &str, given: &[f32], expected: &[f64]) {
    assert_within(what, given, expected, 1e-5);
}

/// A value for each element of each parameter: gains around 1, biases around 0, both far from where training starts, so that
/// none can be left out unnoticed; matrices that keep the size of what they multiply.
pub fn draw(list: &ParameterList, seed: u64) -> Vec<Vec<f32>> {
    let specs = list.specs().iter().enumerate();
    let draw = specs.map(|(index, spec)| {
        let numbers = uniform(seed * 1000 + index as u64 + 1, spec.num_elements());
        let (middle, spread) = match spec.shape[..] {
            [_, inner] => (0.0, (3.0 / inner as f32).sqrt()),
            _ if spec.name.ends_with("weight") => (1.0, 0.3),
            _ => (0.0, 0.3),
        };
        numbers.iter().map(|u| middle + spread * u).collect()
    });
    draw.collect()
}

/// Values by name, for double precision.
pub fn by_name(list: &ParameterList, values: &[Vec<f32>]) -> Values {
    let names = list.specs().iter().map(|spec| spec.name.clone());
    names
        .zip(values.iter().map(|values| wide(values)))
        .collect()
}

/// Records that weights get `values`.
pub fn upload(
    recorder: &mut Recorder,
    list: &Arc<ParameterList>,
    values: &[Vec<f32>],
) -> Result<Parameters> {
    let weights = Parameters::zeros(recorder, list, "weights")?;
    for ((_, tensor), values) in weights.iter().zip(values) {
        recorder.write(tensor, values)?;
    }
    Ok(weights)
}

/// The values of several tensors.
pub type Read = Vec<Vec<f32>>;

/// Submits and reads `tensors` and `sets`.
pub fn read(
    mut recorder: Recorder,
    tensors: &[&Tensor],
    sets: &[&Parameters],
) -> Result<(Read, Vec<Read>)> {
    let mut wait = Vec::new();
    for tensor in tensors {
        wait.push(recorder.download::<f32>(tensor)?);
    }
    let mut wait_sets = Vec::new();
    for set in sets {
        wait_sets.push(set.download(&mut recorder)?);
    }
    recorder.submit()?;
    let tensors: Result<_> = wait.iter().map(|download| download.wait()).collect();
    let sets: Result<_> = wait_sets
        .iter()
        .map(|set| set.iter().map(|download| download.wait()).collect())
        .collect();
    Ok((tensors?, sets?))
}

/// A model and a call of it: with a vocabulary, from tokens to the mean cross-entropy of labels; without, from embeddings to
/// features weighted at random.
#[derive(Clone)]
pub struct Case {
    pub name: &'static str,
    pub config: LongNetConfig,
    pub inputs: Inputs,
}

/// Inputs of one call. Rows behind an item's length have neither labels nor weights.
#[derive(Clone)]
pub struct Inputs {
    pub shape: AttentionShape,
    pub tokens: Vec<u32>,
    pub labels: Vec<Option<u32>>,
    /// Embeddings.
    pub x: Vec<f32>,
    /// Weights of the features.
    pub dy: Vec<f32>,
}

impl Inputs {
    pub fn new(config: &LongNetConfig, shape: AttentionShape) -> Self {
        let rows = shape.batch() * shape.seq_len();
        let width = config.attention().embed_dim();
        let vocab = config.vocab_size.unwrap_or(1);
        let mut inputs = Self {
            tokens: tokens(21, rows, vocab),
            labels: labels(22, rows, vocab),
            x: uniform(11, rows * width),
            dy: uniform(12, rows * width),
            shape,
        };
        let len = inputs.shape.seq_len();
        for row in 0..rows {
            if row % len >= inputs.shape.valid_len(row / len) {
                inputs.labels[row] = None;
                inputs.dy[row * width..][..width].fill(0.0);
            }
        }
        inputs
    }

    /// The first `len` tokens of each of `items`.
    pub fn part(&self, items: Range<usize>, len: usize) -> Self {
        let width = self.x.len() / self.tokens.len();
        let lens: Vec<usize> = items
            .clone()
            .map(|item| self.shape.valid_len(item).min(len))
            .collect();
        let shape = AttentionShape::new(items.end - items.start, len).unwrap();
        let mut part = Self {
            shape: shape.with_valid_lens(&lens).unwrap(),
            tokens: Vec::new(),
            labels: Vec::new(),
            x: Vec::new(),
            dy: Vec::new(),
        };
        for item in items {
            let begin = item * self.shape.seq_len();
            let end = begin + len;
            part.tokens.extend(&self.tokens[begin..end]);
            part.labels.extend(&self.labels[begin..end]);
            part.x.extend(&self.x[begin * width..end * width]);
            part.dy.extend(&self.dy[begin * width..end * width]);
        }
        part
    }

    pub fn counted(&self) -> usize {
        self.labels.iter().flatten().count()
    }
}

/// What a run of a case gives.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    pub features: Vec<f32>,
    /// Sum of cross-entropies; 0 for a model without a vocabulary.
    pub loss: f32,
    /// Gradients of the embedded input.
    pub dinput: Vec<f32>,
    /// Gradients of parameters, in their order.
    pub gradients: Vec<Vec<f32>>,
}

/// Token ids of `count` rows. Not all occur.
pub fn tokens(seed: u64, count: usize, vocab: usize) -> Vec<u32> {
    let id = |u: &f32| ((u * 0.5 + 0.5) * vocab as f32 * 0.8) as u32;
    uniform(seed, count).iter().map(id).collect()
}

/// Labels of `count` rows, every fifth without one.
pub fn labels(seed: u64, count: usize, vocab: usize) -> Vec<Option<u32>> {
    let labels = tokens(seed, count, vocab).into_iter().enumerate();
    labels
        .map(|(row, label)| (row % 5 != 3).then_some(vocab as u32 - 1 - label))
        .collect()
}

pub fn upload_labels(
    recorder: &mut Recorder,
    labels: &[Option<u32>],
    vocab: usize,
) -> Result<Labels> {
    let labels: Vec<u32> = labels
        .iter()
        .map(|label| label.unwrap_or(IGNORED_LABEL))
        .collect();
    Labels::upload(recorder, &labels, vocab)
}

impl Case {
    pub fn new(name: &'static str, config: LongNetConfig, shape: AttentionShape) -> Self {
        let inputs = Inputs::new(&config, shape);
        Self {
            name,
            config,
            inputs,
        }
    }

    pub fn width(&self) -> usize {
        self.config.attention().embed_dim()
    }

    /// Forward and backward on a device.
    pub fn run(
        &self,
        context: &Context,
        values: &[Vec<f32>],
        recompute: Recompute,
        step_seed: Option<u64>,
    ) -> Result<Run> {
        let model = LongNet::new(context, self.config.clone())?;
        let inputs = std::slice::from_ref(&self.inputs);
        self.run_parts(context, &model, values, inputs, recompute, step_seed)
    }

    /// Forward and backward of several calls, whose gradients add up. Features and gradients of inputs are of all calls, the
    /// loss is their sum.
    pub fn run_parts(
        &self,
        context: &Context,
        model: &LongNet,
        values: &[Vec<f32>],
        parts: &[Inputs],
        recompute: Recompute,
        step_seed: Option<u64>,
    ) -> Result<Run> {
        let calls = parts
            .iter()
            .map(|part| (part.clone(), Call::new(part.shape.clone())));
        let calls: Vec<_> = calls.collect();
        self.run_calls(context, model, values, &calls, recompute, step_seed)
    }

    /// As [`run_parts`](Self::run_parts), with the calls of the parts.
    pub fn run_calls(
        &self,
        context: &Context,
        model: &LongNet,
        values: &[Vec<f32>],
        parts: &[(Inputs, Call)],
        recompute: Recompute,
        step_seed: Option<u64>,
    ) -> Result<Run> {
        let mut recorder = context.recorder("case");
        let weights = upload(&mut recorder, model.parameters(), values)?;
        let gradients = model.zero_gradients(&mut recorder)?;
        let mut tensors = Vec::new();
        for (part, call) in parts {
            let dims = [part.shape.batch(), part.shape.seq_len()];
            let dims = [dims[0], dims[1], self.width()];
            let vocab = self.config.vocab_size;
            let embeddings = recorder.upload("x", &dims, &part.x)?;
            let ids = match vocab {
                Some(vocab) => Some(TokenIds::upload(&mut recorder, &part.tokens, vocab)?),
                None => None,
            };
            let input = match &ids {
                Some(ids) => Input::Tokens(ids),
                None => Input::Embeddings(&embeddings),
            };
            let recorder = &mut recorder;
            let (features, saved) =
                model.forward_saving(recorder, &weights, input, call, step_seed, recompute)?;
            let (dfeatures, loss) = match vocab {
                None => (recorder.upload("dy", &dims, &part.dy)?, None),
                Some(vocab) => {
                    let labels = upload_labels(recorder, &part.labels, vocab)?;
                    let to = Some((&gradients, 1.0 / self.inputs.counted() as f32));
                    let loss = model.loss(recorder, &weights, &features, &labels, to)?;
                    (loss.dfeatures.expect("asked for"), Some(loss.total))
                }
            };
            let sets = [&weights, &gradients];
            let dinput = model.backward(recorder, sets, saved, &dfeatures, None)?;
            tensors.extend([features, dinput]);
            tensors.push(match loss {
                Some(loss) => loss,
                None => recorder.zeros("no loss", &[1], DType::F32)?,
            });
        }
        let tensors: Vec<&Tensor> = tensors.iter().collect();
        let (tensors, mut sets) = read(recorder, &tensors, &[&gradients])?;
        let mut run = Run {
            features: Vec::new(),
            dinput: Vec::new(),
            loss: 0.0,
            gradients: sets.pop().unwrap_or_default(),
        };
        for tensors in tensors.chunks(3) {
            run.features.extend(&tensors[0]);
            run.dinput.extend(&tensors[1]);
            run.loss += tensors[2][0];
        }
        Ok(run)
    }

    /// Features in double precision, of [`INPUT`] where `values` have it.
    pub fn features(&self, values: &Values) -> Vec<f64> {
        let input = match values.get(INPUT) {
            Some(x) => model::Input::Embeddings(x),
            None => model::Input::Tokens(&self.inputs.tokens),
        };
        let model = self.reference(values);
        model.features(&self.inputs.shape, input, None).unwrap()
    }

    pub fn reference<'a>(&'a self, values: &'a Values) -> model::Model<'a> {
        let (config, prefix) = (&self.config, "");
        model::Model {
            config,
            values,
            prefix,
        }
    }

    /// What the gradients are of, in double precision: the mean cross-entropy, or the weighted features.
    pub fn objective(&self, values: &Values) -> f64 {
        let features = self.features(values);
        match self.config.vocab_size {
            Some(_) => self.reference(values).loss(&features, &self.inputs.labels),
            None => dot(&features, &self.inputs.dy),
        }
    }

    /// The embedding of the input, as [`INPUT`].
    pub fn embeddings(&self, values: &Values) -> Vec<f64> {
        match values.get("embed_tokens.weight") {
            None => wide(&self.inputs.x),
            Some(table) => {
                let (width, scale) = (self.width(), f64::from(self.config.embedding_scale));
                let row = |id: &u32| table[*id as usize * width..][..width].iter();
                let rows = self.inputs.tokens.iter().flat_map(row);
                rows.map(|x| scale * x).collect()
            }
        }
    }
}

pub fn dot(values: &[f64], weights: &[f32]) -> f64 {
    let products = values.iter().zip(weights);
    products
        .map(|(value, weight)| value * f64::from(*weight))
        .sum()
}
