//! What is particular to a model: all that [`ModelRun`] and [`ModelPlan`] do not do for every model alike.

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

/// A model that runs in stages: parts of the input are embedded, the layers of a [`LongNet`] follow, and a last stage reads out.
/// Each is a recording of its own, so that long inputs go up in bounded pieces and an application submits when it suits it.
///
/// A model is plain data and pipelines, cheap to clone; weights are [`Parameters`] beside it. See the
/// [module](super) for an example, and for how to add a model to this crate: the trait is not for models outside of it.
pub trait StagedModel: Clone + fmt::Debug {
    /// Options of the model.
    type Config: Clone;
    /// What one run is over.
    type Input<'a>;
    /// How large an input is: all that a plan needs to know of it.
    type InputSize<'a>;
    /// What is wanted of a run besides what it always returns.
    type Outputs;
    /// Results, on the host.
    type Output;
    /// What is particular to the model in a run over one input.
    #[doc(hidden)]
    type Stages<'a>: Stages<Output = Self::Output>;

    /// Declares the parameters, under the names of the checkpoint, and chooses kernels.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] for options that contradict each other.
    fn new(context: &Context, config: Self::Config) -> Result<Self>;

    /// The options.
    fn config(&self) -> &Self::Config;

    /// The parameters' names and shapes: those of the checkpoint.
    fn parameters(&self) -> &Arc<ParameterList>;

    /// What a run over `input` consists of, its shape checked, but not its values.
    ///
    /// # Errors
    /// [`Error::InvalidShape`] for inputs that the model cannot take and outputs that it does not have.
    #[doc(hidden)]
    fn stages<'a>(
        &self,
        input: Self::Input<'a>,
        outputs: &Self::Outputs,
    ) -> Result<(Outline, Self::Stages<'a>)>;

    /// What `with` makes of an input of `size` that is 0 everywhere.
    ///
    /// # Errors
    /// [`Error::InvalidShape`] for sizes that this machine could not hold, and those of `with`.
    #[doc(hidden)]
    fn with_zeros<T>(
        config: &Self::Config,
        size: Self::InputSize<'_>,
        with: impl FnOnce(Self::Input<'_>) -> Result<T>,
    ) -> Result<T>;

    /// The weights of a checkpoint, f32, f16 or bf16, strictly: a missing, unknown or misshapen tensor is an error that names it.
    /// `weights` is a [`WeightFile`](crate::WeightFile), or, where its names begin otherwise or it holds more, a
    /// [part](crate::WeightFile::part) of one, perhaps [renamed](WeightSource::with_rename).
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

    /// Weights drawn at random, for tests and measurements, submitted; `seed` decides the draws.
    ///
    /// # Errors
    /// Those of leasing, uploading and submitting.
    fn initial_weights(&self, context: &Context, seed: u64) -> Result<Parameters> {
        Parameters::initial(context, self.parameters(), seed)
    }

    /// A run over `input`. Everything is checked; nothing is recorded or leased yet.
    ///
    /// # Errors
    /// [`Error::ParameterMismatch`] for weights that do not fit, [`Error::InvalidShape`] for inputs that do not and for outputs
    /// that the model does not have, and those that the model's input is documented with.
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

    /// Plans a run over an input of `size` on a device with `caps`: the run is recorded on a [dry run](Context::dry_run), without a
    /// device. [`Context::caps`] has those of a context.
    ///
    /// # Errors
    /// As [`new`](Self::new), [`run`](Self::run) and [`ModelRun::next_recording`]; [`Error::InvalidShape`] for an input that this
    /// machine could not hold.
    fn plan(
        config: &Self::Config,
        size: Self::InputSize<'_>,
        outputs: &Self::Outputs,
        caps: DeviceCaps,
    ) -> Result<ModelPlan> {
        ModelPlan::on::<Self>(&Context::dry_run(caps), None, config, size, outputs)
    }

    /// As [`plan`](Self::plan), for a context: with the kernels that it has tuned, and with the
    /// [time](ModelPlan::expected_time) where the kernels have been measured. The device does nothing.
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

/// What is particular to a model in the run over one input. Stages take `&self`, and leave what they make in a [`Stage`], which
/// counts only when all of it was recorded: one that fails has changed nothing, and can be recorded again.
pub trait Stages {
    /// What the run returns.
    type Output;
    /// Tensors that stages hand on, besides the state.
    type Carried: Clone + Default;
    /// Names of what is read back, besides states.
    type Readout;

    /// What recordings are called: of an embedded part, of a layer, of the last stage.
    const LABELS: [&'static str; 3];

    /// The layers.
    fn encoder(&self) -> &LongNet;

    /// Checks the values of the input. Asked where they need be finite, once.
    ///
    /// # Errors
    /// About the first value that the activations' type does not hold.
    fn check_values(&self) -> Result<()> {
        Ok(())
    }

    /// Records that a part is embedded into `state`, (batch, tokens, width), which the first part makes. It holds all that the
    /// first layer is given after the last part.
    ///
    /// # Errors
    /// Those of leasing and recording.
    fn embed(
        &self,
        stage: &mut Stage<'_, Self>,
        state: Option<&Tensor>,
        part: usize,
    ) -> Result<Tensor>;

    /// Records a layer, and what is read in it.
    ///
    /// # Errors
    /// Those of leasing and recording.
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

    /// Records what is read of a state, besides the state itself where it is wanted.
    ///
    /// # Errors
    /// Those of leasing and recording.
    fn read_state(
        &self,
        _stage: &mut Stage<'_, Self>,
        _index: usize,
        _state: &Tensor,
    ) -> Result<()> {
        Ok(())
    }

    /// Records the last stage, given the output of the last layer.
    ///
    /// # Errors
    /// Those of leasing and recording.
    fn read_out(&self, stage: &mut Stage<'_, Self>, state: &Tensor) -> Result<()>;

    /// The results, of the states that were wanted and of what stages have read, each in their order.
    fn output(
        &self,
        states: Vec<(usize, Vec<f32>)>,
        readouts: Vec<(Self::Readout, Vec<f32>)>,
    ) -> Self::Output;

    /// All results, to be checked for values that are not finite.
    fn results<'o>(&self, output: &'o Self::Output, shape: &AttentionShape) -> Vec<ResultPart<'o>>;

    /// What stands in row `row` of an item's states.
    fn token(row: usize) -> Token;
}

/// What a run has to know before its first stage.
#[derive(Debug)]
pub struct Outline {
    /// Items of the batch, and their tokens.
    pub shape: AttentionShape,
    /// Multiplications, about, of each part in which the input is embedded; at least one part.
    pub part_operations: Vec<u64>,
    /// States that are wanted, 0 being the input of the first layer and n the output of n layers.
    pub states: Vec<usize>,
    /// Whether inputs and results need not be finite.
    pub allow_nonfinite: bool,
}

/// One stage while it is recorded.
#[derive(Debug)]
pub struct Stage<'a, S: Stages + ?Sized> {
    /// What it is recorded in.
    pub recorder: Recorder,
    /// The model's weights.
    pub weights: &'a Parameters,
    /// What the stage before has handed on, and what this one will.
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

    /// Records that `tensor`, of any type of activations, is read back as it is now.
    ///
    /// # Errors
    /// Those of [`Recorder::download`].
    pub fn read(&mut self, what: S::Readout, tensor: &Tensor) -> Result<()> {
        let download = ActivationDownload::start(&mut self.recorder, tensor)?;
        self.readouts.push((what, download));
        Ok(())
    }
}

/// Bytes that one recording uploads, about: staging memory is as large.
const UPLOAD_BYTES: usize = 16 << 20;

/// Rows of so many elements that one recording uploads.
pub(super) fn rows_of_an_upload(elements: usize) -> usize {
    (UPLOAD_BYTES / 4 / elements.max(1)).max(1)
}

/// Whether all of `wanted` are below `limit`.
///
/// # Errors
/// [`Error::InvalidShape`] about the first that is not.
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
