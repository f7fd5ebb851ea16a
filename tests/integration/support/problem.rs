//! One attention to compute, on the GPU and by the reference, and the comparison of the two.

use dilated_attention::ops::convert;
use dilated_attention::reference::{self, ReferenceOutput};
use dilated_attention::testing::ForwardVariant;
use dilated_attention::testing::plain::{self, PlainOutput, rounded};
use dilated_attention::{
    AttentionShape, CallOptions, DType, DilatedAttention, DilatedAttentionConfig, Recorder, Tensor,
    UNCOVERED_LSE, softmax_lse,
};

use super::kernel_contexts::TestContext;
use super::numbers::uniform;

/// Configuration, shape and inputs.
#[derive(Clone, Debug)]
pub struct Problem {
    pub config: DilatedAttentionConfig,
    pub shape: AttentionShape,
    pub q: Vec<f32>,
    pub k: Vec<f32>,
    pub v: Vec<f32>,
    /// Gradient of the output, for the backward.
    pub dout: Vec<f32>,
    /// What all of them, and the results, are stored as; they are numbers that it has.
    pub dtype: DType,
}

/// Numbers in -1..1 times `scale`; NaN behind an item's length.
fn tensor(
    config: &DilatedAttentionConfig,
    shape: &AttentionShape,
    len: usize,
    valid_len: impl Fn(usize) -> usize,
    seed: u64,
    scale: f32,
) -> Vec<f32> {
    let width = config.embed_dim();
    let item_len = len * width;
    let mut values = uniform(seed, shape.batch() * item_len);
    values.iter_mut().for_each(|value| *value *= scale);
    for item in 0..shape.batch() {
        let valid = valid_len(item) * width;
        values[item * item_len..][..item_len][valid..].fill(f32::NAN);
    }
    values
}

/// Largest relative error of a number rounded to `dtype`.
pub fn roundoff(dtype: DType) -> f64 {
    let bits = match dtype {
        DType::F16 => 11,
        DType::Bf16 => 8,
        _ => 24,
    };
    0.5f64.powi(bits)
}

impl Problem {
    /// Inputs in -1..1, queries `query_scale` times that. Tokens behind an item's length hold NaN: nobody may see them.
    pub fn new(config: DilatedAttentionConfig, shape: AttentionShape, query_scale: f32) -> Self {
        let queries = |seed, scale| {
            let (len, valid) = (shape.seq_len(), |item| shape.valid_len(item));
            tensor(&config, &shape, len, valid, seed, scale)
        };
        let keys = |seed| {
            let (len, valid) = (shape.key_len(), |item| shape.valid_key_len(item));
            tensor(&config, &shape, len, valid, seed, 1.0)
        };
        Self {
            q: queries(1, query_scale),
            k: keys(2),
            v: keys(3),
            dout: queries(4, 1.0),
            dtype: DType::F32,
            config,
            shape,
        }
    }

    /// The same, rounded to `dtype` and stored so.
    pub fn stored(self, dtype: DType) -> Self {
        let round = |values: Vec<f32>| rounded(dtype, &values);
        Self {
            q: round(self.q),
            k: round(self.k),
            v: round(self.v),
            dout: round(self.dout),
            dtype,
            ..self
        }
    }

    /// Computes it on a device.
    pub fn run(
        &self,
        on: &TestContext,
        variant: ForwardVariant,
    ) -> dilated_attention::Result<PlainOutput> {
        let attention =
            DilatedAttention::new(&on.context, self.config.clone())?.with_variant(variant)?;
        let mut recorder = on.context.recorder("test");
        let [q, k, v] = self.upload(&mut recorder)?;
        let result =
            attention.forward_with(&mut recorder, &q, &k, &v, &CallOptions::from(&self.shape))?;
        assert_eq!(result.out.dtype(), self.dtype);
        let out = convert(&mut recorder, &result.out, DType::F32)?;
        let out = recorder.download::<f32>(&out)?;
        let state = recorder.download::<f32>(&result.softmax_state)?;
        recorder.submit()?;
        Ok(PlainOutput {
            out: out.wait()?,
            softmax_lse: softmax_lse(&state.wait()?),
        })
    }

    /// Records the inputs.
    pub fn upload(&self, recorder: &mut Recorder) -> dilated_attention::Result<[Tensor; 3]> {
        let (queries, keys) = (
            self.dims(self.shape.seq_len()),
            self.dims(self.shape.key_len()),
        );
        Ok([
            self.upload_one(recorder, "q", &queries, &self.q)?,
            self.upload_one(recorder, "k", &keys, &self.k)?,
            self.upload_one(recorder, "v", &keys, &self.v)?,
        ])
    }

    /// Records one tensor as it is to be stored.
    pub fn upload_one(
        &self,
        recorder: &mut Recorder,
        label: &'static str,
        dims: &[usize],
        values: &[f32],
    ) -> dilated_attention::Result<Tensor> {
        let tensor = recorder.upload(label, dims, values)?;
        convert(recorder, &tensor, self.dtype)
    }

    /// Computes it in plain single precision, stored alike.
    pub fn plain(&self) -> PlainOutput {
        let inputs = [&self.q[..], &self.k, &self.v];
        plain::forward(&self.config, &self.shape, inputs, self.dtype, None).unwrap()
    }

    /// Dimensions of a tensor with `len` tokens an item.
    pub fn dims(&self, len: usize) -> [usize; 4] {
        let Self { config, shape, .. } = self;
        [shape.batch(), len, config.num_heads(), config.head_dim()]
    }

    /// Computes it in double precision.
    pub fn reference(&self) -> ReferenceOutput {
        reference::forward(&self.config, &self.shape, &self.q, &self.k, &self.v).unwrap()
    }

    /// Runs it with every kernel of `on` and compares each with the reference.
    pub fn check(&self, on: &TestContext) -> Result<(), String> {
        self.check_kernels(on, &on.forward_variants(self.config.head_dim()))
    }

    /// Runs it with `variants` and compares each with the reference.
    pub fn check_kernels(
        &self,
        on: &TestContext,
        variants: &[ForwardVariant],
    ) -> Result<(), String> {
        let names = variants
            .iter()
            .map(|variant| format!("{variant}, {}", on.name));
        self.check_runs(names.zip(variants), |variant| self.run(on, *variant))
    }

    /// Computes it in several named ways and compares each with the reference.
    pub fn check_runs<W>(
        &self,
        ways: impl IntoIterator<Item = (String, W)>,
        run: impl Fn(W) -> dilated_attention::Result<PlainOutput>,
    ) -> Result<(), String> {
        let reference = self.reference();
        // The yardstick must itself be right, or it would allow anything.
        let allowed =
            Errors::of(&self.plain(), &reference).map_err(|reason| format!("plain: {reason}"))?;
        if !allowed.is_plausible(&reference, self.dtype) {
            return Err(format!("plain single precision is off by {allowed:?}"));
        }
        for (name, way) in ways {
            let told =
                |reason: String| format!("{name}: {} on {:?}: {reason}", self.config, self.shape);
            let result = run(way).map_err(|error| told(error.to_string()))?;
            let errors = Errors::of(&result, &reference).map_err(told)?;
            if !errors.within(&allowed, &reference, self.dtype) {
                return Err(told(format!(
                    "errors {errors:?}, those of plain {} {allowed:?}",
                    self.dtype
                )));
            }
        }
        Ok(())
    }
}

/// Largest absolute errors.
#[derive(Debug)]
struct Errors {
    out: f64,
    lse: f64,
}

impl Errors {
    /// Errors of `result`; an `Err` when it does not cover the same rows, or covers one with what is no number.
    fn of(result: &PlainOutput, reference: &ReferenceOutput) -> Result<Self, String> {
        let mut errors = Self { out: 0.0, lse: 0.0 };
        let lengths = (result.out.len(), result.softmax_lse.len());
        if lengths != (reference.out.len(), reference.softmax_lse.len()) {
            return Err(format!("{lengths:?} values"));
        }
        for (index, (given, expected)) in result.out.iter().zip(&reference.out).enumerate() {
            let error = (f64::from(*given) - expected).abs();
            if !error.is_finite() {
                return Err(format!("out[{index}] is {given}, expected {expected}"));
            }
            errors.out = errors.out.max(error);
        }
        let lses = result.softmax_lse.iter().zip(&reference.softmax_lse);
        for (index, (given, expected)) in lses.enumerate() {
            let uncovered = *expected == reference::UNCOVERED_LSE;
            if uncovered != (*given < 0.1 * UNCOVERED_LSE) || !given.is_finite() {
                return Err(format!(
                    "softmax_lse[{index}] is {given}, expected {expected}"
                ));
            }
            if !uncovered {
                errors.lse = errors.lse.max((f64::from(*given) - expected).abs());
            }
        }
        Ok(errors)
    }

    /// Not larger than twice those of a plain single-precision implementation, as both round differently and either
    /// may be lucky; or than 1e-5 of the largest value, where that one was lucky indeed (few terms, no rounding); or than one
    /// rounding of that value to what is stored.
    fn within(&self, plain: &Self, reference: &ReferenceOutput, dtype: DType) -> bool {
        let [out, lse] = largest(reference);
        self.out <= f64::max(2.0 * plain.out, f64::max(1e-5, roundoff(dtype)) * out)
            && self.lse <= f64::max(2.0 * plain.lse, 1e-5 * lse)
    }

    /// Whether these can be rounding errors: large scores lose up to their own spacing in the exponent, outputs are rounded
    /// once for their branch and once when it is mixed.
    fn is_plausible(&self, reference: &ReferenceOutput, dtype: DType) -> bool {
        let [out, lse] = largest(reference);
        let spacing = 1e-5 * lse.max(1.0);
        self.out <= (spacing + 2.0 * roundoff(dtype)) * out && self.lse <= spacing
    }
}

/// Largest absolute output and log-sum-exp of covered rows.
fn largest(reference: &ReferenceOutput) -> [f64; 2] {
    let largest = |values: &[f64]| {
        let covered = values
            .iter()
            .filter(|value| **value != reference::UNCOVERED_LSE);
        covered.fold(0.0, |largest: f64, value| largest.max(value.abs()))
    };
    [largest(&reference.out), largest(&reference.softmax_lse)]
}
