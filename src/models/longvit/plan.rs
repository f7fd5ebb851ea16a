//! What running LongViT will need.

use super::{LongVit, LongVitConfig, LongVitRun};
use crate::context::{Context, WarmUp};
use crate::device::DeviceCaps;
use crate::error::Result;
use crate::models::plan::{self, ModelPlan};
use crate::tensor::zeros;

impl LongVit {
    /// Plans a run over images of `size`, (batch, height, width), on a device with `caps`: the run is recorded on a
    /// [dry run](Context::dry_run), without a device.
    ///
    /// ```
    /// use dilated_attention::DeviceCaps;
    /// use dilated_attention::models::longvit::{LongVit, LongVitConfig};
    /// let config = LongVitConfig::published(2);
    /// let plan = LongVit::plan(&config, [1, 4096, 4096], &[], DeviceCaps::webgpu_defaults())?;
    /// println!("{plan}");
    /// # Ok::<(), dilated_attention::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`LongVitRun::new`] and [`LongVitRun::next_recording`]; [`Error::InvalidShape`](crate::Error::InvalidShape) for images
    /// that this machine could not hold.
    pub fn plan(
        config: &LongVitConfig,
        size: [usize; 3],
        states: &[usize],
        caps: DeviceCaps,
    ) -> Result<ModelPlan> {
        plan_on(&Context::dry_run(caps), None, config, size, states)
    }

    /// As [`plan`](Self::plan), for a context: with the kernels that it has tuned, and with the
    /// [time](ModelPlan::expected_time) where the kernels have been measured. The device does nothing.
    ///
    /// # Errors
    /// As [`plan`](Self::plan).
    pub fn plan_for(
        context: &Context,
        config: &LongVitConfig,
        size: [usize; 3],
        states: &[usize],
    ) -> Result<ModelPlan> {
        plan_on(&context.own_dry_run(), Some(context), config, size, states)
    }

    /// Compiles the kernels of a run over images of `size` now; see [`Context::warm_up`].
    ///
    /// # Errors
    /// As [`plan`](Self::plan) and [`Context::warm_up`].
    pub fn warm_up(&self, context: &Context, size: [usize; 3], states: &[usize]) -> Result<WarmUp> {
        let dry_run = context.own_dry_run();
        let kernels = rehearse(&dry_run, &self.config, size, states, |run| {
            plan::kernels(run)
        })?;
        context.warm_up(&kernels)
    }
}

fn plan_on(
    dry_run: &Context,
    measured: Option<&Context>,
    config: &LongVitConfig,
    size: [usize; 3],
    states: &[usize],
) -> Result<ModelPlan> {
    rehearse(dry_run, config, size, states, |run| {
        let shape = run.shape();
        let rows = shape.batch() as u64 * shape.seq_len() as u64;
        let embedding = 2 * rows * (config.patch_elements() * config.width()) as u64;
        let flop = embedding + plan::encoder_flop(dry_run, &config.encoder(), shape)?;
        ModelPlan::of_run(dry_run, measured, run, [rows, flop])
    })
}

/// What `with` makes of a run on a dry run, with stand-ins for weights and images.
fn rehearse<T>(
    dry_run: &Context,
    config: &LongVitConfig,
    size @ [batch, height, width]: [usize; 3],
    states: &[usize],
    with: impl FnOnce(LongVitRun<'_>) -> Result<T>,
) -> Result<T> {
    let model = LongVit::new(dry_run, config.clone())?;
    let weights = plan::stand_ins(dry_run, model.parameters())?;
    let elements = [batch, config.channels, height, width]
        .iter()
        .try_fold(1usize, |product, size| product.checked_mul(*size));
    let given = format!("{batch} of {height} x {width}");
    let images = zeros("images", given, elements)?;
    with(LongVitRun::new(
        dry_run, &model, &weights, &images, size, states,
    )?)
}
