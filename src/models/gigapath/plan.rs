//! What encoding a batch of slides will need.

use std::fmt;
use std::time::Duration;

use super::{Slide, SlideEncoder, SlideEncoderConfig, SlideOutputs, SlideRun};
use crate::config::AttentionShape;
use crate::context::{Context, WarmUp};
use crate::error::{Error, Result};
use crate::nn::Parameters;
use crate::plan::DeviceFacts;
use crate::recorder::Recorder;

/// What encoding a batch of slides will need, known before it runs; made by [`SlideEncoder::plan`].
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct SlidePlan {
    /// Tokens of all slides, a batch being as long as its longest.
    pub num_tokens: u64,
    /// Bytes of the weights.
    pub weight_bytes: u64,
    /// Most bytes that are asked for at one moment, weights and staging included.
    pub requested_bytes: u64,
    /// Most bytes that the pool holds, as far as it lends no buffers from before.
    pub held_bytes: u64,
    /// Recordings, each one submission or more.
    pub num_recordings: u64,
    /// Dispatches of all of them.
    pub num_dispatches: u64,
    /// Floating point operations of products and attention.
    pub flop: u64,
}

impl SlidePlan {
    /// Time on an adapter that does so many floating point operations a second in a layer.
    pub fn time_at(&self, flop_per_second: f64) -> Duration {
        let seconds = self.flop as f64 / flop_per_second;
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    }

    /// Whether the pool stays within `budget_bytes`.
    ///
    /// # Errors
    /// [`Error::PlanOverBudget`] with both numbers.
    pub fn check_budget(&self, budget_bytes: u64) -> Result<()> {
        match self.held_bytes <= budget_bytes {
            true => Ok(()),
            false => Err(Error::PlanOverBudget {
                what: "encoding the slides",
                requested_bytes: self.held_bytes,
                budget_bytes,
            }),
        }
    }
}

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
    /// As [`SlideRun::new`] and [`SlideRun::next_recording`].
    pub fn plan(
        config: &SlideEncoderConfig,
        tiles: &[usize],
        outputs: &SlideOutputs,
        facts: DeviceFacts,
    ) -> Result<SlidePlan> {
        let planner = Context::planner(facts.clone());
        let (encoder, weights) = Self::planned(&planner, config)?;
        planner.pool().trim();
        planner.pool().reset_peaks();
        let weight_bytes = planner.pool().stats().requested_bytes.current;
        let (mut num_recordings, mut num_dispatches) = (0, 0);
        encoder.rehearse(&planner, &weights, tiles, outputs, |recorder| {
            num_recordings += 1;
            num_dispatches += recorder.num_dispatches();
        })?;
        let longest = tiles.iter().copied().max().unwrap_or(0);
        let stats = planner.pool().stats();
        Ok(SlidePlan {
            num_tokens: (longest as u64 + 1) * tiles.len() as u64,
            weight_bytes,
            requested_bytes: stats.requested_bytes.peak,
            held_bytes: stats.held_bytes.peak,
            num_recordings,
            num_dispatches,
            flop: flop(config, tiles, longest, facts)?,
        })
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
        let (encoder, weights) = Self::planned(&planner, &self.config)?;
        let mut kernels = Vec::new();
        encoder.rehearse(&planner, &weights, tiles, outputs, |recorder| {
            for kernel in recorder.kernels() {
                if !kernels.contains(&kernel) {
                    kernels.push(kernel);
                }
            }
        })?;
        context.warm_up(&kernels)
    }

    /// An encoder and weights on a planner.
    fn planned(planner: &Context, config: &SlideEncoderConfig) -> Result<(Self, Parameters)> {
        let encoder = Self::new(planner, config.clone())?;
        let mut recorder = planner.recorder("weights");
        let weights = Parameters::zeros(&mut recorder, encoder.parameters(), "weights")?;
        recorder.submit()?;
        Ok((encoder, weights))
    }

    /// Records a run on a planner, each recording shown to `seen`.
    fn rehearse(
        &self,
        planner: &Context,
        weights: &Parameters,
        tiles: &[usize],
        outputs: &SlideOutputs,
        mut seen: impl FnMut(&Recorder),
    ) -> Result<()> {
        let dim = self.config.feature_dim;
        let longest = tiles.iter().copied().max().unwrap_or(0);
        let elements = longest
            .checked_mul(dim)
            .filter(|elements| {
                elements
                    .checked_mul(4)
                    .is_some_and(|bytes| bytes < isize::MAX as usize)
            })
            .ok_or_else(|| Error::SizeOverflow {
                what: "features of a slide",
                given: format!("{longest} tiles"),
            })?;
        // Stand-ins, never read but for half precision: the memory is not touched.
        let (features, coords) = (vec![0.0; elements], vec![[0.0; 2]; longest]);
        let slides: Vec<_> = tiles
            .iter()
            .map(|&tiles| Slide {
                features: &features[..tiles * dim],
                coords: &coords[..tiles],
            })
            .collect();
        let mut run = SlideRun::new(planner, self, weights, &slides, outputs)?;
        while let Some(recorder) = run.next_recording()? {
            seen(&recorder);
            recorder.submit()?;
        }
        Ok(())
    }
}

fn flop(
    config: &SlideEncoderConfig,
    tiles: &[usize],
    longest: usize,
    facts: DeviceFacts,
) -> Result<u64> {
    let width = config.width() as u64;
    let lens: Vec<u32> = tiles.iter().map(|tiles| *tiles as u32 + 1).collect();
    let shape = AttentionShape::new(tiles.len() as u32, longest as u32 + 1)?;
    let shape = shape.with_valid_lens(&lens)?;
    let attention = config
        .attention
        .plan_forward(&shape, config.activations, &facts)?
        .flop;
    let rows = (longest as u64 + 1) * tiles.len() as u64;
    let embedding = 2 * tiles.iter().sum::<usize>() as u64 * config.feature_dim as u64 * width;
    let products = 2 * rows * (4 * width * width + 2 * width * config.ffn_dim as u64);
    Ok(embedding + config.num_layers as u64 * (attention + products))
}

impl fmt::Display for SlidePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        writeln!(f, "tokens      {}", self.num_tokens)?;
        writeln!(
            f,
            "memory      {:.1} MiB asked for at most, in buffers of {:.1} MiB; {:.1} of them weights",
            mib(self.requested_bytes),
            mib(self.held_bytes),
            mib(self.weight_bytes)
        )?;
        writeln!(
            f,
            "work        {:.1} GFLOP in {} dispatches, {} recordings",
            self.flop as f64 / 1e9,
            self.num_dispatches,
            self.num_recordings
        )
    }
}
