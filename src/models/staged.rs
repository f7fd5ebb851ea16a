//! The traits of a model: everything in which models differ. What they share is in [`ModelRun`] and [`ModelPlan`].

use std::fmt;
use std::sync::Arc;

use super::ModelPlan;
use super::activations::ActivationDownload;
use super::finite::ResultPart;
use super::plan;
use super::run::ModelRun;
use crate::config::AttentionShape;
use crate::context::{Context, WarmUp, warm_up};
use crate::device::DeviceCaps;
use crate::error::{Error, Result, Token};
use crate::longnet::{Call, LongNet};
use crate::nn::{ParameterList, Parameters};
use crate::recorder::Recorder;
use crate::tensor::Tensor;
use crate::weights::WeightSource;

/// A model that runs in stages: the input is embedded in parts, the layers of a [`LongNet`] follow, and a last stage reads the
/// results. Each stage is a recording of its own. So long inputs are uploaded in bounded pieces, and an application can submit when
/// it likes.
///
/// A model holds its options and the choice of its kernels, and is cheap to clone. Its weights are separate [`Parameters`]. The
/// [module](super) has an example, and says how to add a model to this crate. The trait cannot be implemented outside of it.
pub trait StagedModel: Clone + fmt::Debug {
    /// Options of the model.
    type Config: Clone;
    /// Input of a run.
    type Input<'a>;
    /// Size of an input, from which a plan is made.
    type InputSize<'a>;
    /// Optional outputs of a run, besides those that it always returns.
    type Outputs;
    /// Results, on the host.
    type Output;
    /// The stages of a run over one input.
    #[doc(hidden)]
    type Stages<'a>: Stages<Output = Self::Output>;

    /// Makes the model: declares its parameters under the names of the checkpoint, and chooses kernels.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] for options that contradict each other.
    fn new(context: &Context, config: Self::Config) -> Result<Self>;

    /// The options.
    fn config(&self) -> &Self::Config;

    /// Names and shapes of the parameters, as in the checkpoint.
    fn parameters(&self) -> &Arc<ParameterList>;

    /// The stages of a run over `input`. Checks the shape of the input, but not its values.
    ///
    /// # Errors
    /// [`Error::InvalidShape`] for inputs that the model cannot take and outputs that it does not have.
    #[doc(hidden)]
    fn stages<'a>(
        &self,
        input: Self::Input<'a>,
        outputs: &Self::Outputs,
    ) -> Result<(Outline, Self::Stages<'a>)>;

    /// Calls `with` with an input of `size` whose values are all 0.
    ///
    /// # Errors
    /// [`Error::InvalidShape`] for inputs too large for the memory of this machine, and the errors of `with`.
    #[doc(hidden)]
    fn with_zeros<T>(
        config: &Self::Config,
        size: Self::InputSize<'_>,
        with: impl FnOnce(Self::Input<'_>) -> Result<T>,
    ) -> Result<T>;

    /// Loads the weights of a checkpoint, which may be f32, f16 or bf16. Loading is strict: a missing or unknown tensor, or one of
    /// another shape, is an error that names it. `weights` is a [`WeightFile`](crate::WeightFile). If its names have a prefix or it
    /// has other tensors, too, take a [part](crate::WeightFile::part) of it, and if necessary [rename](WeightSource::with_rename)
    /// tensors.
    ///
    /// # Errors
    /// As [`WeightSource::load`].
    fn load<'a>(
        &self,
        context: &Context,
        weights: impl Into<WeightSource<'a>>,
    ) -> Result<Parameters> {
        weights.into().load(context, self.parameters())
    }

    /// Random weights for tests and measurements, which follow from `seed`. They are uploaded and submitted.
    ///
    /// # Errors
    /// The errors of leasing, uploading and submitting.
    fn initial_weights(&self, context: &Context, seed: u64) -> Result<Parameters> {
        Parameters::initial(context, self.parameters(), seed)
    }

    /// Makes a run over `input`. The call checks everything; it neither records nor leases anything.
    ///
    /// # Errors
    /// [`Error::ParameterMismatch`] for weights that do not fit; [`Error::InvalidShape`] for inputs that do not fit and outputs
    /// that the model does not have; and the errors in the documentation of the model's input.
    fn run<'a>(
        &self,
        context: &Context,
        weights: &Parameters,
        input: Self::Input<'a>,
        outputs: &Self::Outputs,
    ) -> Result<ModelRun<'a, Self>> {
        let run = ModelRun::unchecked(context, self, weights, input, outputs)?;
        run.check_values()?;
        Ok(run)
    }

    /// Plans a run over an input of `size` on a device with `caps`. It records the run on a [dry run](Context::dry_run), so it
    /// needs no device. [`Context::caps`] gives the caps of a context.
    ///
    /// # Errors
    /// As [`new`](Self::new), [`run`](Self::run) and [`ModelRun::next_recording`]; [`Error::InvalidShape`] for an input too large
    /// for the memory of this machine.
    fn plan(
        config: &Self::Config,
        size: Self::InputSize<'_>,
        outputs: &Self::Outputs,
        caps: DeviceCaps,
    ) -> Result<ModelPlan> {
        ModelPlan::on::<Self>(&Context::dry_run(caps), None, config, size, outputs)
    }

    /// As [`plan`](Self::plan), for a context: with the kernels that it would use, and with the [expected
    /// time](ModelPlan::expected_time) if its kernels have been measured. The device does nothing.
    ///
    /// # Errors
    /// As [`plan`](Self::plan).
    fn plan_for(
        context: &Context,
        config: &Self::Config,
        size: Self::InputSize<'_>,
        outputs: &Self::Outputs,
    ) -> Result<ModelPlan> {
        let dry_run = context.own_dry_run();
        ModelPlan::on::<Self>(&dry_run, Some(context), config, size, outputs)
    }

    /// Compiles the kernels of a run over an input of `size` now; see [`Context::warm_up`].
    ///
    /// # Errors
    /// As [`plan`](Self::plan) and [`Context::warm_up`].
    fn warm_up(
        &self,
        context: &Context,
        size: Self::InputSize<'_>,
        outputs: &Self::Outputs,
    ) -> Result<WarmUp> {
        let dry_run = context.own_dry_run();
        let kernels = plan::kernels::<Self>(&dry_run, self.config(), size, outputs)?;
        warm_up::compile(context, &kernels)
    }
}

/// The stages of a model's run over one input. A stage takes `&self` and leaves its results in a [`Stage`]. They count only once
/// the whole stage was recorded. So a stage that fails has changed nothing and can be recorded again.
pub trait Stages {
    /// Results of the run.
    type Output;
    /// Tensors that stages hand on to the next, besides the state.
    type Carried: Clone + Default;
    /// Names of downloads, besides states.
    type Readout;

    /// Labels of recordings: embedding a part, a layer, the last stage.
    const LABELS: [&'static str; 3];

    /// The model of the layers.
    fn encoder(&self) -> &LongNet;

    /// Checks the values of the input. Called once, if inputs must be finite.
    ///
    /// # Errors
    /// An error that names the first value that is not finite in the type of the activations.
    fn check_values(&self) -> Result<()> {
        Ok(())
    }

    /// Records how a part of the input is embedded into `state`, (batch, tokens, width). The first part makes this tensor. After
    /// the last part it is the input of the first layer.
    ///
    /// # Errors
    /// The errors of leasing and recording.
    fn embed(
        &self,
        stage: &mut Stage<'_, Self>,
        state: Option<&Tensor>,
        part: usize,
    ) -> Result<Tensor>;

    /// Records a layer, and downloads of what it computes besides its output.
    ///
    /// # Errors
    /// The errors of leasing and recording.
    fn layer(
        &self,
        stage: &mut Stage<'_, Self>,
        call: &Call,
        index: usize,
        state: Tensor,
    ) -> Result<Tensor> {
        let (recorder, weights) = (&mut stage.recorder, stage.weights);
        let layer = self
            .encoder()
            .layer(recorder, weights, call, index, state, None);
        Ok(layer?.0)
    }

    /// Records downloads that are made from a state, besides the download of the state itself.
    ///
    /// # Errors
    /// The errors of leasing and recording.
    fn read_state(
        &self,
        _stage: &mut Stage<'_, Self>,
        _index: usize,
        _state: &Tensor,
    ) -> Result<()> {
        Ok(())
    }

    /// Records the last stage. `state` is the output of the last layer.
    ///
    /// # Errors
    /// The errors of leasing and recording.
    fn read_out(&self, stage: &mut Stage<'_, Self>, state: &Tensor) -> Result<()>;

    /// Makes the results from the requested states and the downloads of the stages, both in order.
    fn output(
        &self,
        states: Vec<(usize, Vec<f32>)>,
        readouts: Vec<(Self::Readout, Vec<f32>)>,
    ) -> Self::Output;

    /// Lists all results, to be checked for values that are not finite.
    fn results<'o>(&self, output: &'o Self::Output, shape: &AttentionShape) -> Vec<ResultPart<'o>>;

    /// The token in row `row` of an item's states.
    fn token(row: usize) -> Token;
}

/// Facts about a run that are known before its first stage.
#[derive(Debug)]
pub struct Outline {
    /// Items of the batch, and their tokens.
    pub shape: AttentionShape,
    /// For each part in which the input is embedded, its approximate number of multiplications. There is at least one part.
    pub part_operations: Vec<u64>,
    /// Requested states: 0 is the input of the first layer, n the output of n layers.
    pub states: Vec<usize>,
    /// Whether inputs and results may be infinite or NaN.
    pub allow_nonfinite: bool,
}

/// A stage while it is being recorded.
#[derive(Debug)]
pub struct Stage<'a, S: Stages + ?Sized> {
    /// The recorder of the stage.
    pub recorder: Recorder,
    /// The model's weights.
    pub weights: &'a Parameters,
    /// Tensors from the previous stage; after this stage, tensors for the next one.
    pub carried: S::Carried,
    pub(super) readouts: Vec<(S::Readout, ActivationDownload)>,
}

impl<'a, S: Stages + ?Sized> Stage<'a, S> {
    pub(super) fn new(recorder: Recorder, weights: &'a Parameters, carried: S::Carried) -> Self {
        Self {
            recorder,
            weights,
            carried,
            readouts: Vec::new(),
        }
    }

    /// Records a download of `tensor`, which may have any type of activations.
    ///
    /// # Errors
    /// As [`Recorder::download`].
    pub fn read(&mut self, what: S::Readout, tensor: &Tensor) -> Result<()> {
        let download = ActivationDownload::start(&mut self.recorder, tensor)?;
        self.readouts.push((what, download));
        Ok(())
    }
}

/// Approximate bytes that one recording uploads, and so the size of its staging memory.
const UPLOAD_BYTES: usize = 16 << 20;

/// Number of rows of `elements` elements that one recording uploads.
pub(super) fn rows_of_an_upload(elements: usize) -> usize {
    (UPLOAD_BYTES / 4 / elements.max(1)).max(1)
}

/// Checks that all of `wanted` are below `limit`.
///
/// # Errors
/// [`Error::InvalidShape`] with the first that is not.
pub(super) fn expect_below(what: &'static str, wanted: &[usize], limit: usize) -> Result<()> {
    match wanted.iter().find(|wanted| **wanted >= limit) {
        None => Ok(()),
        Some(given) => Err(Error::InvalidShape {
            what: what.into(),
            given: given.to_string(),
            need: format!("one of the {limit} there are, from 0 on"),
        }),
    }
}
