//! The optimiser's step on the device.

use super::{grid, size};
use crate::error::Result;
use crate::kernel::{AdamWParams, Kernel};
use crate::recorder::Recorder;
use crate::tensor::Tensor;

/// Numbers of one step of AdamW.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWStep {
    /// Learning rate of this step.
    pub learning_rate: f32,
    /// Decay of the mean of gradients.
    pub beta_1: f32,
    /// Decay of the mean of their squares.
    pub beta_2: f32,
    /// Added to the root of that mean.
    pub eps: f32,
    /// Decay of weights, times the learning rate, apart from the gradient.
    pub weight_decay: f32,
    /// Number of the step, from 1.
    pub step: u64,
    /// Gradients are multiplied by this first: 1 / number of accumulated batches, for example.
    pub gradient_scale: f32,
    /// Gradients whose norm over all parameters exceeds this are scaled down to it.
    pub max_norm: Option<f32>,
}

/// Records one step of AdamW (Loshchilov and Hutter 2019) on the elements of `value`. `norm_squared` is the sum of the squares
/// of all gradients of the model, before `gradient_scale`.
///
/// # Errors
/// [`Error::InvalidShape`](crate::Error::InvalidShape), [`Error::WrongDType`](crate::Error::WrongDType),
/// [`Error::ForeignDevice`](crate::Error::ForeignDevice) for tensors that do not fit, and the errors of recording.
pub fn adamw(
    recorder: &mut Recorder,
    step: &AdamWStep,
    norm_squared: &Tensor,
    gradient: &Tensor,
    value: &Tensor,
    [moment_1, moment_2]: [&Tensor; 2],
) -> Result<()> {
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
    let facts = recorder.context().facts().clone();
    // In double precision: 1 - beta^t loses all digits otherwise.
    let exponent = i32::try_from(step.step).unwrap_or(i32::MAX);
    let correction = |beta: f32| (1.0 / (1.0 - f64::from(beta).powi(exponent))) as f32;
    let window = (facts.max_binding_bytes / 4 / 64 * 64).max(1);
    let mut begin = 0;
    while begin < count {
        let end = count.min(begin + window);
        let bind = |tensor: &'_ Tensor| {
            tensor.vector().reshape(1).and_then(|elements| {
                let bound = elements.bind(begin, end, &facts)?;
                Ok((bound.binding.1, bound.skip))
            })
        };
        let (range, skip) = bind(value)?;
        let grid = grid("adamw", (end - begin).div_ceil(64), &facts)?;
        let params = AdamWParams {
            count: size("elements", end - begin)?,
            skip,
            learning_rate: step.learning_rate,
            beta_1: step.beta_1,
            beta_2: step.beta_2,
            eps: step.eps,
            weight_decay: step.weight_decay,
            correction_1: correction(step.beta_1),
            correction_2: correction(step.beta_2),
            max_norm: step.max_norm.unwrap_or(0.0),
            gradient_scale: step.gradient_scale,
            first_workgroup: 0,
            grid_width: grid[0],
        };
        let bindings = [
            (norm_squared, norm.bind(0, 1, &facts)?.binding.1),
            (gradient, range),
            (value, range),
            (moment_1, range),
            (moment_2, range),
        ];
        for changed in [value, moment_1, moment_2] {
            recorder.reads(changed);
        }
        recorder.dispatch(Kernel::AdamW, &bindings, &params, grid)?;
        begin = end;
    }
    Ok(())
}
