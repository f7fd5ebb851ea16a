//! AdamW over the parameters of a model.

use std::sync::Arc;

#[cfg(doc)]
use crate::error::Error;
use crate::error::Result;
use crate::nn::{ParameterList, Parameters};
use crate::ops::adamw::{AdamWOptions, AdamWStep, adamw};
use crate::ops::sum_of_squares;
use crate::recorder::Recorder;
use crate::tensor::Tensor;

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
    /// [`Error::ParameterMismatch`] when the means are not those of the weights' parameters; those of leasing.
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
        let gradients: Vec<&Tensor> = self.gradients.slabs().map(|slab| slab.elements).collect();
        let norm_squared = sum_of_squares(recorder, &gradients)?;
        let [moment_1, moment_2] = &self.moments;
        let moments = moment_1.slabs().zip(moment_2.slabs());
        for ((weights, gradient), (moment_1, moment_2)) in
            self.weights.slabs().zip(gradients).zip(moments)
        {
            let mut step = AdamWStep {
                options: *options,
                learning_rate,
                step,
                gradient_scale,
            };
            if !weights.decays {
                step.options.weight_decay = 0.0;
            }
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
