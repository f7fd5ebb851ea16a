//! The plan of a model's run: memory, work and time, before it runs.

use std::fmt;
use std::time::Duration;

use super::run::ModelRun;
use super::staged::StagedModel;
use crate::context::{Context, Tally};
#[cfg(doc)]
use crate::error::Error;
use crate::error::Result;
use crate::kernels::Kernel;
use crate::nn::Parameters;
use crate::plan::needs;
use crate::recorder::Recorder;

/// Memory, work and time of a model's run over one input, known before it runs. Made by [`StagedModel::plan`] and
/// [`StagedModel::plan_for`].
///
/// ```
/// use dilated_attention::DeviceCaps;
/// use dilated_attention::models::StagedModel;
/// use dilated_attention::models::gigapath::{SlideEncoder, SlideEncoderConfig, SlideOutputs};
/// use dilated_attention::models::longvit::{LongVit, LongVitConfig, LongVitOutputs};
/// let caps = DeviceCaps::webgpu_defaults();
/// let (config, outputs) = (SlideEncoderConfig::base(), SlideOutputs::default());
/// let of_a_slide = SlideEncoder::plan(&config, &[45_680], &outputs, caps.clone())?;
/// assert!(of_a_slide.held_bytes < 1536 << 20);
/// let (config, outputs) = (LongVitConfig::published(2), LongVitOutputs::default());
/// let of_an_image = LongVit::plan(&config, [1, 4096, 4096], &outputs, caps)?;
/// println!("{of_a_slide}{of_an_image}");
/// # Ok::<(), dilated_attention::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct ModelPlan {
    /// Tokens of the batch: the number of items times the tokens of the longest.
    pub num_tokens: usize,
    /// Bytes of the weights.
    pub weight_bytes: u64,
    /// Peak of the bytes that are requested at the same time, weights and staging included.
    pub requested_bytes: u64,
    /// Peak of the bytes that the pool holds, from the loading of the weights to the end. Each buffer counts with its size class. A
    /// [budget](crate::Pool::set_budget_bytes) must allow this much, if the pool lends nothing else.
    pub held_bytes: u64,
    /// Number of recordings. Each is one submission or, in slices, several.
    pub num_recordings: usize,
    /// Number of dispatches of all recordings.
    pub num_dispatches: usize,
    /// Floating point operations of matrix products and attention.
    pub flop: u64,
    /// Expected time of all dispatches, from times that sliced submissions have measured on this adapter, in this process or an
    /// earlier one ([`Context::save_cost_model`]). `None` without a context, or if one of the kernels was never measured.
    pub expected_time: Option<Duration>,
}

impl ModelPlan {
    /// Time of the run on an adapter that does `flop_per_second` floating point operations per second.
    pub fn time_at(&self, flop_per_second: f64) -> Duration {
        needs::time_at(self.flop, flop_per_second)
    }

    /// Checks that the pool stays within `budget_bytes`.
    ///
    /// # Errors
    /// [`Error::PlanOverBudget`] with both numbers.
    pub fn check_budget(&self, budget_bytes: u64) -> Result<()> {
        needs::check_budget(
            "the model over this input",
            self.held_bytes,
            budget_bytes,
            "shorten the input, take activations in half precision or raise the budget",
        )
    }

    /// Plans a run on `dry_run`, a new dry run. Expected times come from the context `measured`, if given.
    pub(super) fn on<M: StagedModel>(
        dry_run: &Context,
        measured: Option<&Context>,
        config: &M::Config,
        size: M::InputSize<'_>,
        outputs: &M::Outputs,
    ) -> Result<Self> {
        with_run::<M, _>(dry_run, config, size, outputs, |run| {
            let (encoder, outline) = (run.encoder_config(), run.outline());
            let shape = &outline.shape;
            let embedding = 2 * outline.part_operations.iter().sum::<u64>();
            let flop = embedding + encoder.layers_flop(shape, dry_run.caps())?;
            let num_tokens = shape.batch().saturating_mul(shape.seq_len());
            let pool = dry_run.pool();
            let loading_bytes = pool.stats().held_bytes.peak;
            pool.reset_peaks();
            let weight_bytes = pool.stats().requested_bytes.current;
            let mut tally = Tally::new(measured);
            rehearse(run, |recorder| tally.add(recorder))?;
            let stats = pool.stats();
            Ok(Self {
                num_tokens,
                weight_bytes,
                requested_bytes: stats.requested_bytes.peak,
                held_bytes: stats.held_bytes.peak.max(loading_bytes),
                num_recordings: tally.num_recordings,
                num_dispatches: tally.num_dispatches,
                flop,
                expected_time: tally.expected_time,
            })
        })
    }
}

/// The kernels of a run, each once, found by a dry run.
pub(super) fn kernels<M: StagedModel>(
    dry_run: &Context,
    config: &M::Config,
    size: M::InputSize<'_>,
    outputs: &M::Outputs,
) -> Result<Vec<Kernel>> {
    let mut kernels = Vec::new();
    with_run::<M, _>(dry_run, config, size, outputs, |run| {
        rehearse(run, |recorder| {
            for kernel in recorder.recorded_kernels() {
                if !kernels.contains(&kernel) {
                    kernels.push(kernel);
                }
            }
        })
    })?;
    Ok(kernels)
}

/// Calls `with` with a run on a dry run. Weights and input have the right sizes, but no values.
fn with_run<M: StagedModel, T>(
    dry_run: &Context,
    config: &M::Config,
    size: M::InputSize<'_>,
    outputs: &M::Outputs,
    with: impl FnOnce(ModelRun<'_, M>) -> Result<T>,
) -> Result<T> {
    let model = M::new(dry_run, config.clone())?;
    // In the way that real weights are loaded, so that the peak of staging memory is right.
    let list = model.parameters();
    let weights = Parameters::submitted(dry_run, "load weights", list, |_, _, _| Ok(()))?;
    M::with_zeros(config, size, |input| {
        with(ModelRun::unchecked(
            dry_run, &model, &weights, input, outputs,
        )?)
    })
}

/// Goes through all recordings of a run on a dry run, and calls `seen` with each.
fn rehearse<M: StagedModel>(
    mut run: ModelRun<'_, M>,
    mut seen: impl FnMut(&Recorder),
) -> Result<()> {
    while let Some(recorder) = run.next_recording()? {
        seen(&recorder);
        recorder.submit()?;
    }
    Ok(())
}

impl fmt::Display for ModelPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "tokens      {}", self.num_tokens)?;
        let kept = (self.weight_bytes, "weights");
        needs::write_memory(f, self.requested_bytes, self.held_bytes, kept)?;
        writeln!(
            f,
            "work        {:.3} GFLOP in {} dispatches, {} recordings",
            self.flop as f64 / 1e9,
            self.num_dispatches,
            self.num_recordings
        )?;
        needs::write_time(f, self.expected_time)
    }
}
