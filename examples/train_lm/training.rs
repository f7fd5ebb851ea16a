//! The training itself, on one device or on ranks.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use clap::builder::RangedU64ValueParser;
use dilated_attention::distributed::{Group, GroupError, RankGrid};
use dilated_attention::longnet::{GenerateOptions, LongNet, Recompute};
use dilated_attention::training::{Batch, LearningRate, Trainer, TrainingOptions};
use dilated_attention::weights::WeightFile;
use dilated_attention::{AdapterChoice, AttentionShape, Context, ContextOptions};
use indicatif::{ProgressBar, ProgressStyle};
use program::Result;

use crate::baselines;
use crate::curve::Curve;
use crate::data::{Data, Random};
use crate::settings::Settings;
use crate::text::{byte, printable, tokens};

const BITS: f64 = std::f64::consts::LOG2_E;

/// Bytes of validation that are measured each time, about, and those of one batch.
const VALIDATION_BYTES: usize = 24 << 10;
const VALIDATION_BATCH_BYTES: usize = 4 << 10;

/// Options of a training.
#[derive(Args)]
pub struct Options {
    /// What to learn from [default: the sources of the crate naga, which cargo has on every machine that built this]
    #[arg(long, value_name = "FILE|FOLDER")]
    data: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
    /// Steps in all, those before --resume among them
    #[arg(long, value_name = "N", default_value_t = 600, value_parser = at_least_one::<u64>())]
    steps: u64,
    /// Sequences of a step
    #[arg(long, value_name = "B", default_value_t = 4, value_parser = at_least_one::<usize>())]
    batch: usize,
    /// Length of each
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = at_least_one::<usize>())]
    tokens: usize,
    /// Parts of a step's batch that are accumulated
    #[arg(long, value_name = "P", default_value_t = 1, value_parser = at_least_one::<usize>())]
    parts: usize,
    /// Peak of the learning rate
    #[arg(long, value_name = "R", default_value_t = 3e-3)]
    rate: f32,
    /// Part of the activations that is dropped
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    dropout: f32,
    /// Keep only the inputs of layers, and compute the others again
    #[arg(long)]
    recompute: bool,
    /// Of all random numbers
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
    /// Where checkpoint.safetensors, which the example generate reads, and loss.svg are written
    #[arg(long, value_name = "FOLDER", default_value = "target/train_lm")]
    out: PathBuf,
    /// Steps from one checkpoint to the next
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = at_least_one::<u64>())]
    save_every: u64,
    /// Go on from the checkpoint in FOLDER, with the sizes of its model
    #[arg(long)]
    resume: bool,
    /// Bytes that it writes in the end
    #[arg(long, value_name = "N", default_value_t = 400)]
    generate: usize,
    /// File for the loss of each step, in nats, a line each
    #[arg(long, value_name = "FILE")]
    losses: Option<PathBuf>,
    /// Of several ranks, those that share each sequence; the others take other sequences of a step
    #[arg(long, value_name = "P", default_value = "1")]
    ranks_per_sequence: NonZeroUsize,
}

/// A number of things: at least 1, of 32 bits.
fn at_least_one<T: TryFrom<u64>>() -> RangedU64ValueParser<T> {
    RangedU64ValueParser::new().range(1..=u64::from(u32::MAX))
}

/// Trains on one device.
pub fn train(options: &Options) -> Result<()> {
    train_by(options, &Context::new_blocking()?, None)
}

/// Trains together with the other ranks of a group, which all make this call. The first one tells how it goes, measures and saves.
pub fn train_on_ranks(options: &Options, group: &Arc<Group>) -> Result<()> {
    let adapter = AdapterChoice::OfRank(group.rank());
    let context = ContextOptions::new().with_adapter(adapter).open_blocking();
    let context = group.agree(context)?;
    let grid = RankGrid::new(group.clone(), options.ranks_per_sequence)?;
    let trained = train_by(options, &context, Some(&grid));
    // What only this rank knows of is told to the others, which wait for the next step.
    let told = trained.map_err(|error| GroupError::Application {
        reason: error.to_string(),
    });
    Ok(group.agree(told.map_err(dilated_attention::Error::from))?)
}

fn train_by(options: &Options, context: &Context, grid: Option<&RankGrid>) -> Result<()> {
    let is_first = grid.is_none_or(|grid| grid.all().rank() == 0);
    macro_rules! say {
        ($($words:tt)*) => {
            if is_first {
                program::say!($($words)*);
            }
        };
    }
    let path = match &options.data {
        Some(path) => path.clone(),
        None => Data::default_path()?,
    };
    let data = Data::read(&path)?;
    say!(
        "data        {}: {} bytes to learn from, {} to be judged by",
        data.name,
        data.training.len(),
        data.validation.len()
    );
    let order_0 = baselines::order_0(&data.training, &data.validation);
    let order_3 = baselines::order_3(&data.training, &data.validation);
    say!("baselines   single bytes {order_0:.3}, three bytes before {order_3:.3} bits per byte");

    let info = context.adapter_info();
    say!(
        "adapter     {} ({:?}, {})",
        info.name,
        info.backend,
        info.driver_info
    );
    if let Some(grid) = grid {
        say!(
            "ranks       {}, {} to a sequence",
            grid.all().size(),
            grid.row().size()
        );
    }
    let checkpoint = options.out.join("checkpoint.safetensors");
    let resumed = match options.resume {
        true => Some(WeightFile::open(&checkpoint)?),
        false => None,
    };
    let settings = match &resumed {
        // The sizes are those that it was begun with.
        Some(file) => Settings::from_metadata(file.metadata())?,
        None => options.settings.clone(),
    };
    say!("model       {settings}");
    let mut config = settings.config()?;
    config.dropout = options.dropout;
    config.activation_dropout = options.dropout;
    let training = TrainingOptions {
        recompute: match options.recompute {
            true => Recompute::Layers,
            false => Recompute::Insides,
        },
        seed: options.seed,
        ..TrainingOptions::new(LearningRate::Cosine {
            peak: options.rate,
            end: options.rate / 10.0,
            warm_up: (options.steps / 10).min(100),
            total: options.steps,
        })
    };
    let shapes = options.shapes()?;
    let plan = Trainer::plan_for(context, &config, &shapes, &training)?;
    say!("{plan}");

    std::fs::create_dir_all(&options.out)
        .map_err(|error| format!("{}: {error}", options.out.display()))?;
    let model = LongNet::new(context, config)?;
    let mut trainer = match &resumed {
        None => Trainer::new(context, model, training)?,
        Some(file) => Trainer::resume(context, model, training, file)?,
    };
    // The next checkpoint takes its place.
    drop(resumed);
    if trainer.steps() >= options.steps {
        let (done, steps) = (trainer.steps(), options.steps);
        return Err(
            format!("{done} steps are done; ask for more than {steps} with --steps").into(),
        );
    }

    let mut curve = Curve {
        levels: vec![("single bytes", order_0), ("three bytes before", order_3)],
        ..Curve::default()
    };
    let validation = validation_batches(&data.validation, options.tokens)?;
    let measure = |trainer: &Trainer| -> dilated_attention::Result<f64> {
        let evaluation = trainer.evaluate_blocking(&validation)?;
        Ok(f64::from(evaluation.loss) * BITS)
    };
    let started = Instant::now();
    let style = ProgressStyle::with_template("[{bar:24}] {pos}/{len}  {msg}  {eta} left")?;
    let bar = match is_first {
        true => ProgressBar::new(options.steps),
        false => ProgressBar::hidden(),
    };
    let bar = bar.with_style(style).with_position(trainer.steps());
    let measure_every = options.steps.div_ceil(12).max(1);
    if let Some(grid) = grid {
        let batches = options.batches(&data.training, trainer.steps() + 1)?;
        trainer.warm_up_on_ranks(grid, &batches)?;
    }
    context.pool().reset_peaks();
    while trainer.steps() < options.steps {
        let batches = options.batches(&data.training, trainer.steps() + 1)?;
        let report = match grid {
            None => trainer.step(&batches)?.wait()?,
            Some(grid) => trainer.step_on_ranks(grid, &batches)?,
        };
        if !is_first {
            continue;
        }
        curve
            .training
            .push((report.step, f64::from(report.loss) * BITS));
        let line = format!(
            "{:.3} bits  norm {:.2}  rate {:.1e}",
            f64::from(report.loss) * BITS,
            report.gradient_norm,
            report.learning_rate
        );
        if report.step % measure_every == 0 || report.step == options.steps {
            let bits = measure(&trainer)?;
            curve.validation.push((report.step, bits));
            bar.suspend(|| program::say!("step {:>6} {line}  validation {bits:.3}", report.step));
        }
        bar.set_position(report.step);
        bar.set_message(line);
        if report.step.is_multiple_of(options.save_every) || report.step == options.steps {
            trainer.save(&checkpoint, &settings.metadata())?;
        }
    }
    if !is_first {
        return Ok(());
    }
    bar.finish_and_clear();
    let seconds = started.elapsed().as_secs_f64();
    let stats = context.pool().stats();
    say!("\npool\n{stats}");
    let title = format!("{}, {} parameters", data.name, plan.num_parameters);
    if let Some(path) = &options.losses {
        let lines = curve.training.iter();
        let lines: String = lines
            .map(|(_, bits)| format!("{:.7}\n", bits / BITS))
            .collect();
        std::fs::write(path, lines).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    let picture = options.out.join("loss.svg");
    std::fs::write(&picture, curve.svg(&title)?)
        .map_err(|error| format!("{}: {error}", picture.display()))?;
    say!(
        "wrote       {} and {}",
        checkpoint.display(),
        picture.display()
    );

    let bits = measure(&trainer)?;
    let bytes: usize = shapes.iter().map(|s| s.batch() * s.seq_len()).sum();
    say!(
        "\n{} steps of {bytes} bytes in {:.1} minutes: {bits:.3} bits per byte of validation;\n\
         single bytes {order_0:.3}, three bytes before {order_3:.3}",
        options.steps,
        seconds / 60.0
    );
    if options.generate > 0 {
        let prompt = b"fn ";
        say!("\nand so it goes on after '{}':\n", printable(prompt));
        let sampling = GenerateOptions::new(options.generate)
            .with_temperature(0.8)
            .with_seed(options.seed + 1);
        let (model, weights) = (trainer.model(), trainer.weights());
        let mut text = prompt.to_vec();
        for token in model.generate(context, weights, &tokens(prompt), &sampling)? {
            text.push(byte(token?));
        }
        say!("{}", printable(&text));
    }
    if bits.is_nan() || bits >= order_0 {
        return Err(format!("{bits:.3} bits per byte do not beat {order_0:.3}").into());
    }
    Ok(())
}

impl Options {
    /// Checks that a number of ranks can be divided as these say.
    pub fn expect_ranks(&self, ranks: usize) -> Result<()> {
        let columns = self.ranks_per_sequence;
        match ranks.is_multiple_of(columns.get()) {
            true => Ok(()),
            false => {
                Err(format!("{ranks} ranks cannot be divided into {columns} to a sequence").into())
            }
        }
    }

    /// Shapes of the parts of a step.
    fn shapes(&self) -> Result<Vec<AttentionShape>> {
        let sizes = self.part_sizes();
        let shape = |size: &usize| AttentionShape::new(*size, self.tokens);
        Ok(sizes.iter().map(shape).collect::<Result<_, _>>()?)
    }

    fn part_sizes(&self) -> Vec<usize> {
        let parts = self.parts.min(self.batch);
        (0..parts)
            .map(|part| (self.batch * (part + 1) / parts) - (self.batch * part / parts))
            .collect()
    }

    /// What step `step` learns from: sequences from anywhere, the same whenever the step is run.
    fn batches(&self, bytes: &[u8], step: u64) -> Result<Vec<Batch>> {
        let mut random = Random::new(self.seed << 32 ^ step);
        let mut sequence = || {
            let begin = random.bits() as usize % (bytes.len() - self.tokens);
            tokens(&bytes[begin..=begin + self.tokens])
        };
        self.part_sizes()
            .iter()
            .map(|size| {
                let sequences: Vec<Vec<u32>> = (0..*size).map(|_| sequence()).collect();
                batch_of(&sequences)
            })
            .collect()
    }
}

fn batch_of(sequences: &[Vec<u32>]) -> Result<Batch> {
    let sequences: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
    Ok(Batch::next_tokens(&sequences)?)
}

/// Sequences spread evenly over the validation bytes.
fn validation_batches(bytes: &[u8], len: usize) -> Result<Vec<Batch>> {
    let fit = (bytes.len() - 1) / len;
    if fit == 0 {
        let have = bytes.len();
        return Err(format!("{have} validation bytes are too few for sequences of {len}").into());
    }
    let count = (VALIDATION_BYTES / len).clamp(1, fit);
    let sequences: Vec<Vec<u32>> = (0..count)
        .map(|index| index * fit / count * len)
        .map(|begin| tokens(&bytes[begin..=begin + len]))
        .collect();
    let size = (VALIDATION_BATCH_BYTES / len).max(1);
    sequences.chunks(size).map(batch_of).collect()
}
