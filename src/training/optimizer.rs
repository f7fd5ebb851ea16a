//! AdamW over the parameters of a model.

use std::sync::Arc;

#[cfg(doc)]
use crate::error::Error;
use crate::error::Result;
use crate::nn::{ParameterList, Parameters};
use crate::ops::adamw::{AdamWStep, adamw};
use crate::ops::sum_of_squares;
use crate::recorder::Recorder;
use crate::tensor::Tensor;

/// The weights of a model, the sums of their gradients, and AdamW's two means. Clones share them.
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
        let moments = [
            Parameters::zeros(recorder, weights.list(), "moment 1")?,
            Parameters::zeros(recorder, weights.list(), "moment 2")?,
        ];
        Self::from_moments(recorder, weights, moments)
    }

    /// For weights and means that were saved, with gradients of 0.
    ///
    /// # Errors
    /// [`Error::ParameterMismatch`] when the means are not those of the weights' parameters; those of leasing.
    pub fn from_moments(
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

    /// The sums of the gradients.
    pub fn gradients(&self) -> &Parameters {
        &self.gradients
    }

    /// The means of gradients and of their squares.
    pub fn moments(&self) -> &[Parameters; 2] {
        &self.moments
    }

    /// Records a step with the gradients as they are. Returns the square of their norm before they are scaled, one element.
    /// Where it is not finite, weights and means stay as they are. The gradients are left as they are: [clear](Parameters::clear)
    /// them before the next step's. In slices, all weights change in one slice: a submission that is cancelled has changed all of
    /// them, or none.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`]; those of leasing and recording.
    pub fn update(&self, recorder: &mut Recorder, step: &AdamWStep) -> Result<Tensor> {
        let norm_squared = self.gradient_norm_squared(recorder)?;
        recorder.in_one_slice(|recorder| self.apply(recorder, step, &norm_squared))?;
        Ok(norm_squared)
    }

    /// Records the square of the gradients' norm.
    pub(super) fn gradient_norm_squared(&self, recorder: &mut Recorder) -> Result<Tensor> {
        let gradients: Vec<&Tensor> = self.gradients.slabs().map(|slab| slab.elements).collect();
        sum_of_squares(recorder, &gradients)
    }

    /// Records the step itself.
    pub(super) fn apply(
        &self,
        recorder: &mut Recorder,
        step: &AdamWStep,
        norm_squared: &Tensor,
    ) -> Result<()> {
        let [moment_1, moment_2] = &self.moments;
        let moments = moment_1.slabs().zip(moment_2.slabs());
        let gradients = self.gradients.slabs();
        for ((weights, gradients), (moment_1, moment_2)) in
            self.weights.slabs().zip(gradients).zip(moments)
        {
            let mut step = *step;
            if !weights.decays {
                step.options.weight_decay = 0.0;
            }
            adamw(
                recorder,
                &step,
                norm_squared,
                gradients.elements,
                weights.elements,
                [moment_1.elements, moment_2.elements],
            )?;
        }
        Ok(())
    }
}
