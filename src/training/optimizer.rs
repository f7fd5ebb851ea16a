//! AdamW over the parameters of a model.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::nn::{ParameterList, Parameters};
use crate::ops::{AdamWStep, adamw, sum_of_squares};
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
    /// Decay of matrices, times the learning rate, apart from the gradient. Gains and biases do not decay.
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
    /// # Errors
    /// [`Error::InvalidConfig`] names the first number that means nothing.
    fn check(&self) -> Result<()> {
        let positive = |value: f32| value > 0.0 && value.is_finite();
        let below_one = |value: f32| (0.0..1.0).contains(&value);
        let max_norm = self.max_norm.unwrap_or(1.0);
        for (what, value, valid, need) in [
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
            ("eps", self.eps, positive(self.eps), "positive"),
            (
                "weight_decay",
                self.weight_decay,
                self.weight_decay == 0.0 || positive(self.weight_decay),
                "at least 0",
            ),
            ("max_norm", max_norm, positive(max_norm), "positive"),
        ] {
            if !valid {
                return Err(Error::InvalidConfig {
                    what,
                    given: value.to_string(),
                    need,
                });
            }
        }
        Ok(())
    }
}

/// Weights, where their gradients are added up, and the means that AdamW keeps. Clones share them.
#[derive(Clone, Debug)]
pub struct Optimizer {
    weights: Parameters,
    gradients: Parameters,
    moments: [Parameters; 2],
}

impl Optimizer {
    /// For `weights`, with gradients and means of 0.
    ///
    /// # Errors
    /// Those of leasing.
    pub fn new(recorder: &mut Recorder, weights: Parameters) -> Result<Self> {
        let list = weights.list().clone();
        Ok(Self {
            gradients: Parameters::zeros(recorder, &list, "gradients")?,
            moments: [
                Parameters::zeros(recorder, &list, "moment 1")?,
                Parameters::zeros(recorder, &list, "moment 2")?,
            ],
            weights,
        })
    }

    /// For weights and means that were saved, with gradients of 0.
    ///
    /// # Errors
    /// [`Error::OtherModel`] when the means are not those of the weights' parameters; those of leasing.
    pub fn with_moments(
        recorder: &mut Recorder,
        weights: Parameters,
        moments: [Parameters; 2],
    ) -> Result<Self> {
        for moment in &moments {
            moment.expect_list("moments", weights.list())?;
        }
        Ok(Self {
            gradients: Parameters::zeros(recorder, weights.list(), "gradients")?,
            moments,
            weights,
        })
    }

    /// The parameters' names and shapes.
    pub fn parameters(&self) -> &Arc<ParameterList> {
        self.weights.list()
    }

    /// The weights.
    pub fn weights(&self) -> &Parameters {
        &self.weights
    }

    /// Where gradients are added up.
    pub fn gradients(&self) -> &Parameters {
        &self.gradients
    }

    /// The means of gradients and of their squares.
    pub fn moments(&self) -> &[Parameters; 2] {
        &self.moments
    }

    /// Records step `step`, from 1, with gradients times `gradient_scale`. Returns the square of their norm before that
    /// scale, one element. Where it is not finite, weights and means stay as they are. The gradients are left as they are:
    /// [clear](Parameters::clear) them before the next step's.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`]; those of leasing and recording.
    pub fn update(
        &self,
        recorder: &mut Recorder,
        options: &AdamWOptions,
        (step, learning_rate): (u64, f32),
        gradient_scale: f32,
    ) -> Result<Tensor> {
        options.check()?;
        if step == 0 {
            return Err(Error::InvalidConfig {
                what: "step",
                given: "0".to_owned(),
                need: "at least 1",
            });
        }
        let gradients: Vec<&Tensor> = self.gradients.slabs().map(|slab| slab.elements).collect();
        let norm_squared = sum_of_squares(recorder, &gradients)?;
        let [moment_1, moment_2] = &self.moments;
        let moments = moment_1.slabs().zip(moment_2.slabs());
        for ((weights, gradient), (moment_1, moment_2)) in
            self.weights.slabs().zip(gradients).zip(moments)
        {
            let weight_decay = match weights.decays {
                true => options.weight_decay,
                false => 0.0,
            };
            let step = AdamWStep {
                learning_rate,
                beta_1: options.beta_1,
                beta_2: options.beta_2,
                eps: options.eps,
                weight_decay,
                step,
                gradient_scale,
                max_norm: options.max_norm,
            };
            let moments = [moment_1.elements, moment_2.elements];
            adamw(
                recorder,
                &step,
                &norm_squared,
                gradient,
                weights.elements,
                moments,
            )?;
        }
        Ok(norm_squared)
    }
}
