//! AdamW steps on the device.

use super::{grid, row_windows, size};
use crate::error::{Error, Result};
use crate::kernels::adamw::{AdamW, AdamWParams};
use crate::recorder::Recorder;
use crate::tensor::Tensor;

/// Options of AdamW (Loshchilov and Hutter 2019).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWOptions {
    /// Decay rate of the running mean of gradients.
    pub beta_1: f32,
    /// Decay rate of the running mean of squared gradients.
    pub beta_2: f32,
    /// Added to the square root of the mean of squared gradients.
    pub eps: f32,
    /// Weight decay. In each step, weights are reduced by this times the learning rate times themselves. It applies to matrices
    /// only, not to weights of norms and to biases.
    pub weight_decay: f32,
    /// If the norm of the gradients over all parameters is larger than this, they are scaled down to it. `None`: no clipping.
    pub max_norm: Option<f32>,
}

impl Default for AdamWOptions {
    /// The options that LongNet was trained with: betas 0.9 and 0.98, weight decay 0.01, clipping at a norm of 2.
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
    /// Checks that every option is in its range.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] names the first that is not.
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

/// Whether a learning rate or a decay is valid: at least 0 and finite.
fn is_rate(value: f32) -> bool {
    value >= 0.0 && value.is_finite()
}

/// Checks rules, each given as: name of a number, the number, whether it is valid, and what it needs to be.
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
    /// The options, the same for all steps.
    pub options: AdamWOptions,
    /// Learning rate of this step.
    pub learning_rate: f32,
    /// Number of the step, counted from 1.
    pub step: u64,
    /// Factor on the gradients, before clipping: for example 1 / number of accumulated batches.
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
/// [`Error::InvalidConfig`] for an option that is out of its range; [`Error::InvalidShape`], [`Error::WrongDType`],
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
    // In f64, because 1 - beta^t would lose its digits in f32.
    let exponent = i32::try_from(step.step).unwrap_or(i32::MAX);
    let correction = |beta: f32| (1.0 / (1.0 - f64::from(beta).powi(exponent))) as f32;
    for (begin, end) in row_windows("parameters", count, &[value.vector().in_rows_of(1)?], &caps)? {
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
    }
    Ok(())
}
