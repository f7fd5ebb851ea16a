//! The plan of a training step: memory, work and time.

use std::fmt;
use std::time::Duration;

use super::{Batch, LearningRate, Optimizer, Trainer, TrainingOptions};
use crate::config::AttentionShape;
use crate::context::{Context, Tally, WarmUp};
use crate::device::DeviceCaps;
#[cfg(doc)]
use crate::error::Error;
use crate::error::Result;
use crate::longnet::{LongNet, LongNetConfig, Recompute};
use crate::nn::Parameters;
use crate::plan::needs;
use crate::tensor::zeros;

/// Memory, work and expected time of a training step, known before it runs; made by [`Trainer::plan`] and [`Trainer::plan_for`].
/// The figures are those of a model's [`ModelPlan`](crate::models::ModelPlan), in the same units.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct TrainingPlan {
    /// Elements of all parameters.
    pub num_parameters: usize,
    /// Tokens of all batches, each as long as its longest sequence.
    pub num_tokens: usize,
    /// What the backward recomputes.
    pub recompute: Recompute,
    /// Bytes of weights, gradients and the optimiser's means, which stay between steps.
    pub kept_bytes: u64,
    /// Largest sum of the bytes that leases ask for at one time, `kept_bytes` included: the peak of
    /// [`requested_bytes`](crate::PoolStats::requested_bytes) of the pool.
    pub requested_bytes: u64,
    /// Most bytes of the pool's buffers, each rounded up to its size class, from the creation of the weights on: the
    /// smallest [budget](crate::Pool::set_budget_bytes) that suffices if the pool lends nothing else.
    pub held_bytes: u64,
    /// By how much [`Recompute::Layers`] lowers `requested_bytes` (or has lowered it).
    pub saved_by_recomputing_bytes: u64,
    /// Dispatches of the step, which is one recording.
    pub num_dispatches: usize,
    /// Floating point operations of products and attention, forward and backward, those that are computed again included.
    pub flop: u64,
    /// Time of all dispatches, from measurements of sliced submissions on this adapter, in this process or an earlier one
    /// ([`Context::save_cost_model`]); `None` without a context, and where one of the kernels has not been measured.
    pub expected_time: Option<Duration>,
}

impl TrainingPlan {
    /// Time on an adapter that does so many floating point operations a second in a step.
    pub fn time_at(&self, flop_per_second: f64) -> Duration {
        needs::time_at(self.flop, flop_per_second)
    }

    /// Whether the pool stays within `budget_bytes`.
    ///
    /// # Errors
    /// [`Error::PlanOverBudget`] with both numbers.
    pub fn check_budget(&self, budget_bytes: u64) -> Result<()> {
        let next_step = match self.recompute {
            Recompute::Insides => {
                "give the step in more, smaller batches, recompute layers (Recompute::Layers) or raise the budget"
            }
            Recompute::Layers => "give the step in more, smaller batches or raise the budget",
        };
        needs::check_budget(
            "the training step",
            self.held_bytes,
            budget_bytes,
            next_step,
        )
    }
}

impl Trainer {
    /// Plans a step of a model of `config` over batches of `shapes`, on a device with `caps`: the step is recorded on a
    /// [dry run](Context::dry_run), without a device.
    ///
    /// ```
    /// use dilated_attention::longnet::{LongNetConfig, OutputProjection, Recompute};
    /// use dilated_attention::training::{LearningRate, Trainer, TrainingOptions};
    /// use dilated_attention::{AttentionShape, DeviceCaps, DilatedAttentionConfig};
    /// let attention = DilatedAttentionConfig::new(8, 32, &[1024, 8192], &[1, 8])?;
    /// let config = LongNetConfig::decoder(attention, 12, 1024).with_vocabulary(256, OutputProjection::Own);
    /// let mut options = TrainingOptions::new(LearningRate::Constant(1e-3));
    /// options.recompute = Recompute::Layers;
    /// let shapes = [AttentionShape::new(1, 16_384)?];
    /// let plan = Trainer::plan(&config, &shapes, &options, DeviceCaps::webgpu_defaults())?;
    /// assert!(plan.saved_by_recomputing_bytes > 800 << 20);
    /// plan.check_budget(2 << 30)?;
    /// println!("{plan}");
    /// # Ok::<(), dilated_attention::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`LongNet::new`], [`Batch::new`] and [`step`](Self::step); [`Error::InvalidShape`] for batches that this machine could
    /// not hold.
    pub fn plan(
        config: &LongNetConfig,
        shapes: &[AttentionShape],
        options: &TrainingOptions,
        caps: DeviceCaps,
    ) -> Result<TrainingPlan> {
        plan_on(
            || Context::dry_run(caps.clone()),
            None,
            config,
            shapes,
            options,
        )
    }

    /// As [`plan`](Self::plan), for a context: with the kernels that it has tuned, and with the [time](TrainingPlan::expected_time)
    /// where the kernels have been measured. Nothing runs on the device.
    ///
    /// # Errors
    /// As [`plan`](Self::plan).
    pub fn plan_for(
        context: &Context,
        config: &LongNetConfig,
        shapes: &[AttentionShape],
        options: &TrainingOptions,
    ) -> Result<TrainingPlan> {
        plan_on(
            || context.own_dry_run(),
            Some(context),
            config,
            shapes,
            options,
        )
    }

    /// Compiles the kernels of a step over batches of `shapes` now; see [`Context::warm_up`].
    ///
    /// # Errors
    /// As [`step`](Self::step) and [`Context::warm_up`].
    pub fn warm_up(&self, shapes: &[AttentionShape]) -> Result<WarmUp> {
        self.context.warm_up(|dry_run| {
            let trainer = planned(dry_run, self.model.config(), self.options.clone())?;
            let recorder = dry_run.recorder("training step");
            Ok(trainer.record(recorder, &batches(shapes)?)?.0.recorder)
        })
    }
}

/// Plans the step with either kind of recomputing, each on a dry run of its own.
fn plan_on(
    dry_run: impl Fn() -> Context,
    measured: Option<&Context>,
    config: &LongNetConfig,
    shapes: &[AttentionShape],
    options: &TrainingOptions,
) -> Result<TrainingPlan> {
    let with = |recompute| {
        let options = TrainingOptions {
            recompute,
            ..options.clone()
        };
        measure(&dry_run(), measured, config, shapes, options)
    };
    let (insides, layers) = (with(Recompute::Insides)?, with(Recompute::Layers)?);
    let saved = insides
        .requested_bytes
        .saturating_sub(layers.requested_bytes);
    let chosen = match options.recompute {
        Recompute::Insides => insides,
        Recompute::Layers => layers,
    };
    Ok(TrainingPlan {
        saved_by_recomputing_bytes: saved,
        ..chosen
    })
}

/// A trainer on a dry run.
fn planned(dry_run: &Context, config: &LongNetConfig, options: TrainingOptions) -> Result<Trainer> {
    let model = LongNet::new(dry_run, config.clone())?;
    options.check(&model)?;
    // Nothing depends on the rate, and a function may count its calls.
    let options = TrainingOptions {
        learning_rate: LearningRate::Constant(0.0),
        ..options
    };
    // As they are drawn, but for the numbers.
    let list = model.parameters();
    let weights = Parameters::submitted(dry_run, "initial weights", list, |_, _, _| Ok(()))?;
    let mut recorder = dry_run.recorder("optimizer");
    let optimizer = Optimizer::new(&mut recorder, weights)?;
    recorder.submit()?;
    Trainer::assemble(dry_run, model, options, optimizer, 0)
}

/// Batches of such shapes, whatever is in them.
fn batches(shapes: &[AttentionShape]) -> Result<Vec<Batch>> {
    let batch = |shape: &AttentionShape| {
        let (batch, len) = (shape.batch(), shape.seq_len());
        let count = batch.checked_mul(len);
        let zeros = || zeros("batch", format!("{batch} x {len} tokens"), count);
        Batch::new(shape.clone(), zeros()?, zeros()?)
    };
    shapes.iter().map(batch).collect()
}

/// Records a step and reads the pool.
fn measure(
    dry_run: &Context,
    measured: Option<&Context>,
    config: &LongNetConfig,
    shapes: &[AttentionShape],
    options: TrainingOptions,
) -> Result<TrainingPlan> {
    let recompute = options.recompute;
    let trainer = planned(dry_run, config, options)?;
    let setting_up_bytes = dry_run.pool().stats().held_bytes.peak;
    dry_run.pool().reset_peaks();
    let num_parameters = trainer.model.parameters().num_elements();
    let batches = batches(shapes)?;
    let flop_of = |shape| config.step_flop(shape, recompute, dry_run.caps());
    let flop = shapes.iter().map(flop_of).sum::<Result<u64>>()?;
    let kept_bytes = dry_run.pool().stats().requested_bytes.current;
    let (step, _) = trainer.record(dry_run.recorder("training step"), &batches)?;
    let mut tally = Tally::new(measured);
    tally.add(&step.recorder);
    drop(step.submit()?);
    let stats = dry_run.pool().stats();
    Ok(TrainingPlan {
        num_parameters,
        num_tokens: batches.iter().map(|batch| batch.tokens().len()).sum(),
        recompute,
        kept_bytes,
        requested_bytes: stats.requested_bytes.peak,
        held_bytes: stats.held_bytes.peak.max(setting_up_bytes),
        saved_by_recomputing_bytes: 0,
        num_dispatches: tally.num_dispatches,
        flop,
        expected_time: tally.expected_time,
    })
}

impl fmt::Display for TrainingPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "parameters  {}", self.num_parameters)?;
        writeln!(f, "tokens      {}", self.num_tokens)?;
        let kept = (self.kept_bytes, "weights, gradients and means");
        needs::write_memory(f, self.requested_bytes, self.held_bytes, kept)?;
        let saved = needs::mebibytes(self.saved_by_recomputing_bytes);
        match self.recompute {
            Recompute::Insides => writeln!(
                f,
                "recomputing norms and networks; whole layers would save {saved:.1} MiB"
            )?,
            Recompute::Layers => {
                writeln!(f, "recomputing whole layers, which saves {saved:.1} MiB")?
            }
        }
        writeln!(
            f,
            "work        {:.3} GFLOP in {} dispatches",
            self.flop as f64 / 1e9,
            self.num_dispatches
        )?;
        needs::write_time(f, self.expected_time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::DilatedAttentionConfig;
    use crate::device::DType;
    use crate::kernels::Kernel;
    use crate::longnet::OutputProjection;
    use crate::recorder::CostModel;

    fn options(recompute: Recompute) -> TrainingOptions {
        TrainingOptions {
            recompute,
            ..TrainingOptions::new(LearningRate::Constant(1e-3))
        }
    }

    /// Sizes that fill the tiles of all kernels.
    fn config() -> LongNetConfig {
        let attention = DilatedAttentionConfig::new(4, 32, &[128, 512], &[1, 4]).expect("valid");
        let mut config = LongNetConfig::decoder(attention, 3, 512);
        config.vocab_size = Some(256);
        config.output_projection = OutputProjection::Own;
        config
    }

    #[test]
    fn operations_are_those_of_the_products_that_are_recorded() {
        let shapes = [1, 2].map(|items| AttentionShape::new(items, 512).expect("valid"));
        let caps = DeviceCaps::webgpu_defaults();
        for (recompute, forwards) in [(Recompute::Insides, 1.0), (Recompute::Layers, 2.0)] {
            let options = options(recompute);
            let plan = Trainer::plan(&config(), &shapes, &options, caps.clone()).expect("plans");
            let dry_run = Context::dry_run(caps.clone());
            let trainer = planned(&dry_run, &config(), options).expect("leases");
            let batches = batches(&shapes).expect("batches");
            let recorder = dry_run.recorder("training step");
            let (step, _) = trainer.record(recorder, &batches).expect("records");
            let products = step.recorder.work().into_iter();
            let products = products.filter(|(kernel, _)| matches!(kernel, Kernel::Matmul(_)));
            let multiplications: f64 = products.map(|(_, work)| work).sum();
            let attention: u64 = shapes
                .iter()
                .map(|shape| {
                    let plan = config().attention().plan_forward(shape, DType::F32, &caps);
                    plan.expect("plans").flop
                })
                .sum();
            let attention = 3.0 * (forwards + 2.5) * attention as f64;
            assert_eq!(
                plan.flop as f64,
                2.0 * multiplications + attention,
                "{plan}"
            );
            assert_eq!(plan.num_tokens, 3 * 512);
        }
    }

    #[test]
    fn time_is_that_of_the_kernels_where_all_were_measured() {
        let context = Context::dry_run(DeviceCaps::webgpu_defaults());
        let options = options(Recompute::Insides);
        let mut trainer = planned(&context, &config(), options.clone()).expect("leases");
        let shapes = [AttentionShape::new(2, 512).expect("valid")];
        let step = trainer.record_step(&batches(&shapes).expect("batches"));
        let step = step.expect("records");
        let work = step.recorder.work();
        let learn = |kernels: &[(Kernel, f64)]| {
            let known = kernels.iter().map(|(kernel, _)| (kernel.key(), 1e-9));
            let known: std::collections::BTreeMap<String, f64> = known.collect();
            let file = serde_json::json!({ "format": 2, "seconds": known });
            *context.cost_model() = CostModel::from_json(file.to_string().as_bytes());
        };
        let plan = || Trainer::plan_for(&context, &config(), &shapes, &options).expect("plans");
        learn(&work[1..]);
        assert_eq!((plan().expected_time, step.expected_time()), (None, None));
        learn(&work);
        let nanoseconds: f64 = work.iter().map(|(_, work)| work).sum();
        let expected = Duration::from_secs_f64(nanoseconds * 1e-9).as_secs_f64();
        for time in [plan().expected_time, step.expected_time()] {
            let seconds = time.expect("is known").as_secs_f64();
            assert!(
                (seconds - expected).abs() < 1e-6 * expected,
                "{seconds} {expected}"
            );
        }
        assert_eq!(plan().num_dispatches, step.recorder.num_dispatches());
    }

    #[test]
    fn a_plan_says_what_it_knows() {
        let shapes = [AttentionShape::new(4, 512).expect("valid")];
        let plan = |recompute| {
            let caps = DeviceCaps::webgpu_defaults();
            Trainer::plan(&config(), &shapes, &options(recompute), caps).expect("plans")
        };
        let [insides, layers] = [Recompute::Insides, Recompute::Layers].map(plan);
        assert!(layers.held_bytes < insides.held_bytes && layers.flop > insides.flop);
        assert_eq!(insides.expected_time, None);
        assert_eq!(insides.time_at(insides.flop as f64), Duration::from_secs(1));
        assert_eq!(insides.time_at(0.0), Duration::MAX);
        insides.check_budget(insides.held_bytes).expect("fits");
        let error = insides
            .check_budget(insides.held_bytes - 1)
            .expect_err("does not fit");
        let told = error.to_string();
        assert!(
            told.contains(&format!("needs {} bytes", insides.held_bytes))
                && told.contains("Recompute::Layers"),
            "{told}"
        );
        let error = layers
            .check_budget(0)
            .expect_err("does not fit")
            .to_string();
        assert!(!error.contains("Recompute::Layers"), "{error}");
        let known = TrainingPlan {
            expected_time: Some(Duration::from_millis(1500)),
            ..insides
        };
        let text = known.to_string();
        let names: Vec<&str> = text
            .lines()
            .filter_map(|line| line.split(' ').next())
            .collect();
        assert_eq!(
            names,
            [
                "parameters",
                "tokens",
                "memory",
                "recomputing",
                "work",
                "time"
            ]
        );
        assert!(
            text.ends_with("about 1.500 s, as measured here before\n"),
            "{text}"
        );
        assert!(!insides.to_string().contains("time "));
    }
}
