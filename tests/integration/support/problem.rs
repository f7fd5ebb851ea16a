//! One attention to compute, on the GPU and by the reference, and the comparison of the two.

use dilated_attention::kernel::forward::ForwardVariant;
use dilated_attention::plan::UNCOVERED_LSE;
use dilated_attention::reference::{self, ReferenceOutput};
use dilated_attention::{AttentionShape, DilatedAttention, DilatedAttentionConfig};

use super::kernel_contexts::TestContext;
use super::numbers::uniform;
use super::plain;

/// Configuration, shape and inputs.
#[derive(Clone, Debug)]
pub struct Problem {
    pub config: DilatedAttentionConfig,
    pub shape: AttentionShape,
    pub q: Vec<f32>,
    pub k: Vec<f32>,
    pub v: Vec<f32>,
}

/// Output and log-sum-exp in single precision.
#[derive(Clone, Debug, PartialEq)]
pub struct Result32 {
    pub out: Vec<f32>,
    pub softmax_lse: Vec<f32>,
}

impl Problem {
    /// Inputs in -1..1, queries `query_scale` times that. Tokens behind an item's length hold NaN: nobody may see them.
    pub fn new(config: DilatedAttentionConfig, shape: AttentionShape, query_scale: f32) -> Self {
        let width = config.embed_dim() as usize;
        let item_len = shape.seq_len() as usize * width;
        let tensor = |seed: u64, scale: f32| {
            let mut values = uniform(seed, shape.batch() as usize * item_len);
            values.iter_mut().for_each(|value| *value *= scale);
            for item in 0..shape.batch() {
                let valid = shape.valid_len(item) as usize * width;
                values[item as usize * item_len..][..item_len][valid..].fill(f32::NAN);
            }
            values
        };
        Self {
            q: tensor(1, query_scale),
            k: tensor(2, 1.0),
            v: tensor(3, 1.0),
            config,
            shape,
        }
    }

    /// The part of `tensor` that belongs to one token and head.
    pub fn vector<'a>(&self, tensor: &'a [f32], item: u32, token: u32, head: u32) -> &'a [f32] {
        let head_dim = self.config.head_dim() as usize;
        let row = (item * self.shape.seq_len() + token) * self.config.num_heads() + head;
        &tensor[row as usize * head_dim..][..head_dim]
    }

    /// Computes it on a device.
    pub fn run(
        &self,
        on: &TestContext,
        variant: ForwardVariant,
    ) -> dilated_attention::Result<Result32> {
        let Self { config, shape, .. } = self;
        let dims = [
            shape.batch(),
            shape.seq_len(),
            config.num_heads(),
            config.head_dim(),
        ]
        .map(|dim| dim as usize);
        let attention = DilatedAttention::with_variant(&on.context, config.clone(), variant)?;
        let mut recorder = on.context.recorder("test");
        let q = recorder.upload("q", &dims, &self.q)?;
        let k = recorder.upload("k", &dims, &self.k)?;
        let v = recorder.upload("v", &dims, &self.v)?;
        let result = attention.forward(&mut recorder, shape, &q, &k, &v)?;
        let out = recorder.download::<f32>(&result.out)?;
        let softmax_lse = recorder.download::<f32>(&result.softmax_lse)?;
        recorder.submit()?;
        Ok(Result32 {
            out: out.wait()?,
            softmax_lse: softmax_lse.wait()?,
        })
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
        let reference = self.reference();
        let plain = plain::attention(self);
        // The yardstick must itself be right, or it would allow anything.
        let allowed =
            Errors::of(&plain, &reference).map_err(|reason| format!("plain: {reason}"))?;
        if !allowed.is_plausible(&reference) {
            return Err(format!("plain single precision is off by {allowed:?}"));
        }
        for &variant in variants {
            let told = |reason: String| {
                format!(
                    "{variant}, {}: {} on {:?}: {reason}",
                    on.name, self.config, self.shape
                )
            };
            let result = self
                .run(on, variant)
                .map_err(|error| told(error.to_string()))?;
            let errors = Errors::of(&result, &reference).map_err(told)?;
            if !errors.within(&allowed, &reference) {
                return Err(told(format!(
                    "errors {errors:?}, those of plain f32 {allowed:?}"
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
    fn of(result: &Result32, reference: &ReferenceOutput) -> Result<Self, String> {
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
    /// may be lucky; or than 1e-5 of the largest value, where that one was lucky indeed (few terms, no rounding).
    fn within(&self, plain: &Self, reference: &ReferenceOutput) -> bool {
        let [out, lse] = largest(reference);
        self.out <= f64::max(2.0 * plain.out, 1e-5 * out)
            && self.lse <= f64::max(2.0 * plain.lse, 1e-5 * lse)
    }

    /// Whether these can be rounding errors: large scores lose up to their own spacing in the exponent.
    fn is_plausible(&self, reference: &ReferenceOutput) -> bool {
        let [out, lse] = largest(reference);
        let spacing = 1e-5 * lse.max(1.0);
        self.out <= spacing * out && self.lse <= spacing
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
