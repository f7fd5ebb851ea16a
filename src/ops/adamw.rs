//! The optimiser's step on the device.

use super::{grid, size};
use crate::error::{Error, Result};
use crate::kernels::adamw::{AdamW, AdamWParams};
use crate::recorder::Recorder;
use crate::tensor::Tensor;

/// Numbers of AdamW (Loshchilov and Hutter 2019).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWOptions {
    /// Decay of the mean of gradients.
    pub beta_1: f32,
    /// Decay of the mean of their squares.
    pub beta_2: f32,
    /// Added to the root of that mean.
    pub eps: f32,
    /// Decay of matrices, times the learning rate, apart from the gradient. Weights of norms and biases do not decay.
    pub weight_decay: f32,
    /// Gradients whose norm over all parameters exceeds this are scaled down to it.
    pub max_norm: Option<f32>,
}

impl Default for AdamWOptions {
    /// What LongNet was trained with: means of 0.9 and 0.98, decay 0.01, norms up to 2.
    fn default() -> Self {
        Self {
            beta_1: 0.9,
            beta_2: 0.98,
            eps: 1e-8,
            weight_decay: 0.01,
            max_norm: Some(2.0),
        }
    }
}

impl AdamWOptions {
    /// Whether every number means something.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] names the first that does not.
    pub fn check(&self) -> Result<()> {
        let positive = |value: f32| value > 0.0 && value.is_finite();
        let below_one = |value: f32| (0.0..1.0).contains(&value);
        let rules = [
            (
                "beta_1",
                self.beta_1,
                below_one(self.beta_1),
                "at least 0 and below 1",
            ),
            (
                "beta_2",
                self.beta_2,
                below_one(self.beta_2),
                "at least 0 and below 1",
            ),
            ("eps", self.eps, positive(self.eps), "positive and finite"),
            (
                "weight_decay",
                self.weight_decay,
                is_rate(self.weight_decay),
                "at least 0 and finite",
            ),
            (
                "max_norm",
                self.max_norm.unwrap_or(1.0),
                self.max_norm.is_none_or(positive),
                "positive and finite, or none where nothing is clipped",
            ),
        ];
        check(&rules)
    }
}

/// A factor that weights may be changed by: at least 0 and finite.
fn is_rate(value: f32) -> bool {
    value >= 0.0 && value.is_finite()
}

/// Numbers with their names, whether they hold to their rules, and these.
fn check(rules: &[(&'static str, f32, bool, &'static str)]) -> Result<()> {
    match rules.iter().find(|(.., holds, _)| !holds) {
        None => Ok(()),
        Some(&(what, value, _, need)) => Err(Error::InvalidConfig {
            what,
            given: value.to_string(),
            need,
        }),
    }
}

/// One step of AdamW.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWStep {
    /// What all steps share.
    pub options: AdamWOptions,
    /// Learning rate of this step.
    pub learning_rate: f32,
    /// Number of the step, from 1.
    pub step: u64,
    /// Gradients are multiplied by this first: 1 / number of accumulated batches, for example.
    pub gradient_scale: f32,
}

impl AdamWStep {
    fn check(&self) -> Result<()> {
        self.options.check()?;
        if self.step == 0 {
            return Err(Error::InvalidConfig {
                what: "step",
                given: "0".to_owned(),
                need: "at least 1",
            });
        }
        check(&[
            (
                "learning rate",
                self.learning_rate,
                is_rate(self.learning_rate),
                "at least 0 and finite",
            ),
            (
                "gradient_scale",
                self.gradient_scale,
                self.gradient_scale.is_finite(),
                "a finite number",
            ),
        ])
    }
}

/// Records one step of AdamW (Loshchilov and Hutter 2019) on the elements of `value`. `norm_squared` is the sum of the squares
/// of all gradients of the model, before `gradient_scale`.
///
/// # Errors
/// [`Error::InvalidConfig`] for a number that means nothing; [`Error::InvalidShape`], [`Error::WrongDType`],
/// [`Error::ContextMismatch`] for tensors that do not fit; and the errors of recording.
pub fn adamw(
    recorder: &mut Recorder,
    step: &AdamWStep,
    norm_squared: &Tensor,
    gradient: &Tensor,
    value: &Tensor,
    [moment_1, moment_2]: [&Tensor; 2],
) -> Result<()> {
    step.check()?;
    let options = &step.options;
    let count = value.num_elements();
    let norm = norm_squared.vector();
    norm.expect_f32("norm_squared", 1, 1, recorder)?;
    let tensors = [gradient, value, moment_1, moment_2];
    for (what, tensor) in ["gradient", "value", "moment_1", "moment_2"]
        .into_iter()
        .zip(tensors)
    {
        tensor.vector().expect_f32(what, 1, count, recorder)?;
    }
    let caps = recorder.context().caps().clone();
    // In double precision: 1 - beta^t loses all digits otherwise.
    let exponent = i32::try_from(step.step).unwrap_or(i32::MAX);
    let correction = |beta: f32| (1.0 / (1.0 - f64::from(beta).powi(exponent))) as f32;
    let window = (caps.max_binding_bytes / 4 / 64 * 64).max(1);
    let mut begin = 0;
    while begin < count {
        let end = count.min(begin + window);
        let bind = |tensor: &'_ Tensor| {
            tensor.vector().in_rows_of(1).and_then(|elements| {
                let bound = elements.bind(begin, end, &caps)?;
                Ok((bound.binding.1, bound.skip))
            })
        };
        let (range, skip) = bind(value)?;
        let grid = grid("adamw", (end - begin).div_ceil(64), &caps)?;
        let params = AdamWParams {
            count: size("elements", end - begin)?,
            skip,
            learning_rate: step.learning_rate,
            beta_1: options.beta_1,
            beta_2: options.beta_2,
            eps: options.eps,
            weight_decay: options.weight_decay,
            correction_1: correction(options.beta_1),
            correction_2: correction(options.beta_2),
            max_norm: options.max_norm.unwrap_or(0.0),
            gradient_scale: step.gradient_scale,
            first_workgroup: 0,
            grid_width: grid[0],
        };
        let bindings = [
            (norm_squared, norm.bind(0, 1, &caps)?.binding.1),
            (gradient, range),
            (value, range),
            (moment_1, range),
            (moment_2, range),
        ];
        for changed in [value, moment_1, moment_2] {
            recorder.reads(changed);
        }
        recorder.dispatch(AdamW, &bindings, &params, grid)?;
        begin = end;
    }
    Ok(())
}
