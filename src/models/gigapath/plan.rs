//! What encoding a batch of slides will need.

use super::{Slide, SlideEncoder, SlideEncoderConfig, SlideOutputs, SlideRun};
use crate::context::{Context, WarmUp};
use crate::device::DeviceFacts;
use crate::error::Result;
use crate::models::plan::{self, ModelPlan};
use crate::tensor::zeros;

/// What encoding a batch of slides will need; made by [`SlideEncoder::plan`].
pub type SlidePlan = ModelPlan;

impl SlideEncoder {
    /// Plans encoding slides of so many tiles on a device with `facts`: the run is recorded on a
    /// [planner](Context::planner), without a device. [`Context::facts`] has those of a context.
    ///
    /// ```
    /// use dilated_attention::DeviceFacts;
    /// use dilated_attention::models::gigapath::{SlideEncoder, SlideEncoderConfig, SlideOutputs};
    /// let config = SlideEncoderConfig::base();
    /// let facts = DeviceFacts::webgpu_defaults();
    /// let plan = SlideEncoder::plan(&config, &[45_680], &SlideOutputs::default(), facts)?;
    /// assert!(plan.held_bytes < 1536 << 20);
    /// println!("{plan}");
    /// # Ok::<(), dilated_attention::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`SlideRun::new`] and [`SlideRun::next_recording`]; [`Error::InvalidShape`](crate::Error::InvalidShape) for more tiles
    /// than this machine could hold features of.
    pub fn plan(
        config: &SlideEncoderConfig,
        tiles: &[usize],
        outputs: &SlideOutputs,
        facts: DeviceFacts,
    ) -> Result<SlidePlan> {
        plan_on(&Context::planner(facts), None, config, tiles, outputs)
    }

    /// As [`plan`](Self::plan), for a context: with the kernels that it has tuned, and with the
    /// [time](ModelPlan::expected_time) where their pace is known. The device does nothing.
    ///
    /// # Errors
    /// As [`plan`](Self::plan).
    pub fn plan_for(
        context: &Context,
        config: &SlideEncoderConfig,
        tiles: &[usize],
        outputs: &SlideOutputs,
    ) -> Result<SlidePlan> {
        plan_on(
            &context.own_planner(),
            Some(context),
            config,
            tiles,
            outputs,
        )
    }

    /// Compiles the kernels of encoding slides of so many tiles now; see [`Context::warm_up`].
    ///
    /// # Errors
    /// As [`plan`](Self::plan) and [`Context::warm_up`].
    pub fn warm_up(
        &self,
        context: &Context,
        tiles: &[usize],
        outputs: &SlideOutputs,
    ) -> Result<WarmUp> {
        let planner = context.own_planner();
        let kernels = rehearse(&planner, &self.config, tiles, outputs, |run| {
            plan::kernels(run)
        })?;
        context.warm_up(&kernels)
    }
}

fn plan_on(
    planner: &Context,
    measured: Option<&Context>,
    config: &SlideEncoderConfig,
    tiles: &[usize],
    outputs: &SlideOutputs,
) -> Result<SlidePlan> {
    rehearse(planner, config, tiles, outputs, |run| {
        let longest = tiles.iter().copied().max().unwrap_or(0) as u64;
        let num_tiles = tiles.iter().sum::<usize>() as u64;
        let embedding = 2 * num_tiles * config.feature_dim as u64 * config.width() as u64;
        let flop = embedding + plan::encoder_flop(planner, &config.encoder(), run.shape())?;
        let num_tokens = (longest + 1) * tiles.len() as u64;
        ModelPlan::of_run(planner, measured, run, [num_tokens, flop])
    })
}

/// What `with` makes of a run on a planner, with stand-ins for weights and tiles.
fn rehearse<T>(
    planner: &Context,
    config: &SlideEncoderConfig,
    tiles: &[usize],
    outputs: &SlideOutputs,
    with: impl FnOnce(SlideRun<'_>) -> Result<T>,
) -> Result<T> {
    let encoder = SlideEncoder::new(planner, config.clone())?;
    let weights = plan::stand_ins(planner, encoder.parameters())?;
    let longest = tiles.iter().copied().max().unwrap_or(0);
    // Never read but for half precision.
    let (what, elements) = ("number of tiles", longest.checked_mul(config.feature_dim));
    let features = zeros(what, longest, elements)?;
    let coords = zeros(what, longest, Some(longest))?;
    let slides: Vec<_> = tiles
        .iter()
        .map(|&tiles| Slide {
            features: &features[..tiles * config.feature_dim],
            coords: &coords[..tiles],
        })
        .collect();
    let outputs = SlideOutputs {
        // Stand-ins are not worth the look.
        allow_nonfinite: true,
        ..outputs.clone()
    };
    with(SlideRun::new(
        planner, &encoder, &weights, &slides, &outputs,
    )?)
}
