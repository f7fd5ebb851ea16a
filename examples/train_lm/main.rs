//! Trains a byte-level LongNet on real text, from nothing, and lets it write.
//!
//! ```text
//! cargo run --release --example train_lm -- [--data FILE|FOLDER] [--steps N] [--batch B] [--tokens N] [--parts P]
//!     [--layers L] [--heads H] [--head-dim D] [--ffn F] [--segments w,w,..] [--rates r,r,..]
//!     [--rate R] [--dropout P] [--recompute] [--seed S] [--out FOLDER] [--save-every N] [--resume] [--generate N]
//! ```
//!
//! Without `--data` it reads the sources of the crate naga, which cargo has on every machine that built this. The last tenth
//! of the bytes is for validation. The bits a byte on that are compared with what counting achieves on the same split: the
//! entropy of single bytes, and a model of the three bytes before.
//!
//! `--parts` cuts each step's batch into parts that are accumulated; `--recompute` keeps only the inputs of layers. In the
//! folder of `--out` (default target/train_lm): `checkpoint.safetensors`, which `--resume` goes on from and the example
//! `generate` reads, and `loss.svg`.

mod baselines;
mod curve;
mod data;
mod generation;
mod settings;

use std::error::Error;
use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use dilated_attention::longnet::{LongNet, Recompute};
use dilated_attention::training::{Batch, LearningRate, StepReport, Trainer, TrainingOptions};
use dilated_attention::weights::WeightFile;
use dilated_attention::{AttentionShape, Context};

use curve::Curve;
use data::Data;
use generation::{Random, Sampling, continue_text, printable};
use program::{Arguments, say, say_part};
use settings::Settings;

const BITS: f64 = std::f64::consts::LOG2_E;

/// Bytes of validation that are measured each time, about, and those of one batch.
const VALIDATION_BYTES: usize = 24 << 10;
const VALIDATION_BATCH_BYTES: usize = 4 << 10;

struct Options {
    data: Option<PathBuf>,
    settings: Settings,
    steps: u64,
    batch: usize,
    tokens: usize,
    parts: usize,
    rate: f32,
    dropout: f32,
    recompute: bool,
    seed: u64,
    out: PathBuf,
    save_every: u64,
    resume: bool,
    generate: usize,
}

fn main() -> ExitCode {
    program::run(include_str!("main.rs"), run)
}

fn run(arguments: Arguments) -> Result<(), Box<dyn Error>> {
    let options = Options::read(arguments)?;
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

    let context = Context::headless()?;
    let info = context.adapter_info();
    say!(
        "adapter     {} ({:?}, {})",
        info.name,
        info.backend,
        info.driver_info
    );
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
    let plan = Trainer::plan(&config, &shapes, &training, context.caps().clone())?;
    say!("{plan}");

    std::fs::create_dir_all(&options.out)
        .map_err(|error| format!("{}: {error}", options.out.display()))?;
    let model = LongNet::new(&context, config)?;
    let mut trainer = match &resumed {
        None => Trainer::new(&context, model, training)?,
        Some(file) => Trainer::resume(&context, model, training, file)?,
    };
    // A file that is mapped must not change.
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
    let measure = |trainer: &Trainer| -> Result<f64, Box<dyn Error>> {
        let (mut bits, mut labels) = (0.0, 0);
        for batch in &validation {
            let report = trainer.evaluate(std::slice::from_ref(batch))?.wait()?;
            bits += f64::from(report.loss) * BITS * report.labels as f64;
            labels += report.labels;
        }
        Ok(bits / labels as f64)
    };
    let started = Instant::now();
    let mut bar = Bar::new(trainer.steps(), options.steps);
    let measure_every = options.steps.div_ceil(12).max(1);
    context.pool().reset_peaks();
    while trainer.steps() < options.steps {
        let batches = options.batches(&data.training, trainer.steps() + 1)?;
        let report = trainer.step(&batches)?.wait()?;
        curve
            .training
            .push((report.step, f64::from(report.loss) * BITS));
        if report.step % measure_every == 0 || report.step == options.steps {
            curve.validation.push((report.step, measure(&trainer)?));
        }
        bar.show(&report, curve.validation.last().map(|point| point.1));
        if report.step.is_multiple_of(options.save_every) || report.step == options.steps {
            trainer.save(&checkpoint, &settings.metadata())?;
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    let stats = context.pool().stats();
    say!("\n\npool\n{stats}");
    let title = format!("{}, {} parameters", data.name, plan.num_parameters);
    let picture = options.out.join("loss.svg");
    std::fs::write(&picture, curve.svg(&title))
        .map_err(|error| format!("{}: {error}", picture.display()))?;
    say!(
        "wrote       {} and {}",
        checkpoint.display(),
        picture.display()
    );

    let bits = measure(&trainer)?;
    let bytes: usize = shapes.iter().map(|s| (s.batch() * s.seq_len())).sum();
    say!(
        "\n{} steps of {bytes} bytes in {:.1} minutes: {bits:.3} bits per byte of validation;\n\
         single bytes {order_0:.3}, three bytes before {order_3:.3}",
        options.steps,
        seconds / 60.0
    );
    if options.generate > 0 {
        let prompt = b"fn ";
        say!("\nand so it goes on after '{}':\n", printable(prompt));
        let mut text = prompt.to_vec();
        let sampling = Sampling {
            temperature: 0.8,
            seed: options.seed + 1,
        };
        let model = (trainer.model(), trainer.weights());
        continue_text(
            &context,
            model,
            prompt,
            options.generate,
            sampling,
            |byte| {
                text.push(byte);
                ControlFlow::Continue(())
            },
        )?;
        say!("{}", printable(&text));
    }
    if bits.is_nan() || bits >= order_0 {
        return Err(format!("{bits:.3} bits per byte do not beat {order_0:.3}").into());
    }
    Ok(())
}

impl Options {
    fn read(mut arguments: Arguments) -> Result<Self, Box<dyn Error>> {
        let mut options = Self {
            data: None,
            settings: Settings::default(),
            steps: 600,
            batch: 4,
            tokens: 512,
            parts: 1,
            rate: 3e-3,
            dropout: 0.0,
            recompute: false,
            seed: 1,
            out: PathBuf::from("target/train_lm"),
            save_every: 100,
            resume: false,
            generate: 400,
        };
        while let Some(argument) = arguments.next_argument()? {
            let settings = &mut options.settings;
            match argument.option() {
                Some("--data") => options.data = Some(arguments.os_value()?.into()),
                Some("--steps") => options.steps = arguments.value()?,
                Some("--batch") => options.batch = arguments.value()?,
                Some("--tokens") => options.tokens = arguments.value()?,
                Some("--parts") => options.parts = arguments.value()?,
                Some("--layers") => settings.layers = arguments.value()?,
                Some("--heads") => settings.heads = arguments.value()?,
                Some("--head-dim") => settings.head_dim = arguments.value()?,
                Some("--ffn") => settings.ffn_dim = arguments.value()?,
                Some("--segments") => settings.segments = arguments.list()?,
                Some("--rates") => settings.rates = arguments.list()?,
                Some("--rate") => options.rate = arguments.value()?,
                Some("--dropout") => options.dropout = arguments.value()?,
                Some("--recompute") => options.recompute = true,
                Some("--seed") => options.seed = arguments.value()?,
                Some("--out") => options.out = arguments.os_value()?.into(),
                Some("--save-every") => options.save_every = arguments.value()?,
                Some("--resume") => options.resume = true,
                Some("--generate") => options.generate = arguments.value()?,
                Some(_) => return Err(arguments.unknown()),
                None => {
                    let more = argument.into_path();
                    return Err(
                        format!("train_lm takes options only, not {}", more.display()).into(),
                    );
                }
            }
        }
        for (name, value) in [
            ("--batch", options.batch),
            ("--tokens", options.tokens),
            ("--parts", options.parts),
            ("--steps", options.steps as usize),
            ("--save-every", options.save_every as usize),
        ] {
            if value == 0 || u32::try_from(value).is_err() {
                return Err(format!("{name} {value}: at least 1, and a number of 32 bits").into());
            }
        }
        Ok(options)
    }

    /// Shapes of the parts of a step.
    fn shapes(&self) -> Result<Vec<AttentionShape>, Box<dyn Error>> {
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
    fn batches(&self, bytes: &[u8], step: u64) -> Result<Vec<Batch>, Box<dyn Error>> {
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

fn tokens(bytes: &[u8]) -> Vec<u32> {
    bytes.iter().map(|byte| u32::from(*byte)).collect()
}

fn batch_of(sequences: &[Vec<u32>]) -> Result<Batch, Box<dyn Error>> {
    let sequences: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
    Ok(Batch::next_tokens(&sequences)?)
}

/// Sequences spread evenly over the validation bytes.
fn validation_batches(bytes: &[u8], len: usize) -> Result<Vec<Batch>, Box<dyn Error>> {
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

/// One line that is drawn anew at each step on a terminal; elsewhere a line now and then.
struct Bar {
    first: u64,
    last: u64,
    started: Instant,
    shown: Option<Instant>,
    terminal: bool,
}

impl Bar {
    fn new(first: u64, last: u64) -> Self {
        Self {
            first,
            last,
            started: Instant::now(),
            shown: None,
            terminal: std::io::stdout().is_terminal(),
        }
    }

    fn show(&mut self, report: &StepReport, validation: Option<f64>) {
        let pause = Duration::from_secs(if self.terminal { 0 } else { 15 });
        let early = self.shown.is_some_and(|shown| shown.elapsed() < pause);
        if early && report.step < self.last {
            return;
        }
        self.shown = Some(Instant::now());
        let done = (report.step - self.first) as f64;
        let left = (self.last - report.step) as f64;
        let seconds = self.started.elapsed().as_secs_f64() / done * left;
        let filled = (24 * report.step / self.last.max(1)) as usize;
        let line = format!(
            "[{:<24}] {}/{}  {:.3} bits  norm {:.2}  rate {:.1e}{}  {:.0} s left",
            "#".repeat(filled),
            report.step,
            self.last,
            f64::from(report.loss) * BITS,
            report.gradient_norm,
            report.learning_rate,
            validation.map_or(String::new(), |bits| format!("  validation {bits:.3}")),
            seconds
        );
        match self.terminal {
            true => say_part!("\r{line}\x1b[K"),
            false => say!("{line}"),
        }
    }
}
