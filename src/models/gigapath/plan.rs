//! What encoding a batch of slides will need.

use super::{Slide, SlideEncoder, SlideEncoderConfig, SlideOutputs, SlideRun};
use crate::context::{Context, WarmUp};
use crate::device::DeviceCaps;
use crate::error::Result;
use crate::models::plan::{self, ModelPlan};
use crate::tensor::zeros;

/// What encoding a batch of slides will need; made by [`SlideEncoder::plan`].
pub type SlidePlan = ModelPlan;

impl SlideEncoder {
    /// Plans encoding slides of so many tiles on a device with `caps`: the run is recorded on a
    /// [dry run](Context::dry_run), without a device. [`Context::caps`] has those of a context.
    ///
    /// ```
    /// use dilated_attention::DeviceCaps;
    /// use dilated_attention::models::gigapath::{SlideEncoder, SlideEncoderConfig, SlideOutputs};
    /// let config = SlideEncoderConfig::base();
    /// let caps = DeviceCaps::webgpu_defaults();
    /// let plan = SlideEncoder::plan(&config, &[45_680], &SlideOutputs::default(), caps)?;
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
        caps: DeviceCaps,
    ) -> Result<SlidePlan> {
        plan_on(&Context::dry_run(caps), None, config, tiles, outputs)
    }

    /// As [`plan`](Self::plan), for a context: with the kernels that it has tuned, and with the
    /// [time](ModelPlan::expected_time) where the kernels have been measured. The device does nothing.
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
            &context.own_dry_run(),
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
        let dry_run = context.own_dry_run();
        let kernels = rehearse(&dry_run, &self.config, tiles, outputs, |run| {
            plan::kernels(run)
        })?;
        context.warm_up(&kernels)
    }
}

fn plan_on(
    dry_run: &Context,
    measured: Option<&Context>,
    config: &SlideEncoderConfig,
    tiles: &[usize],
    outputs: &SlideOutputs,
) -> Result<SlidePlan> {
    rehearse(dry_run, config, tiles, outputs, |run| {
        let longest = tiles.iter().copied().max().unwrap_or(0) as u64;
        let num_tiles = tiles.iter().sum::<usize>() as u64;
        let embedding = 2 * num_tiles * config.feature_dim as u64 * config.width() as u64;
        let flop = embedding + plan::encoder_flop(dry_run, &config.encoder(), run.shape())?;
        let num_tokens = (longest + 1) * tiles.len() as u64;
        ModelPlan::of_run(dry_run, measured, run, [num_tokens, flop])
    })
}

/// What `with` makes of a run on a dry run, with stand-ins for weights and tiles.
fn rehearse<T>(
    dry_run: &Context,
    config: &SlideEncoderConfig,
    tiles: &[usize],
    outputs: &SlideOutputs,
    with: impl FnOnce(SlideRun<'_>) -> Result<T>,
) -> Result<T> {
    let encoder = SlideEncoder::new(dry_run, config.clone())?;
    let weights = plan::stand_ins(dry_run, encoder.parameters())?;
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
        dry_run, &encoder, &weights, &slides, &outputs,
    )?)
}
