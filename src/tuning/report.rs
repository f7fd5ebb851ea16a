//! [`tune`] and its report.

use std::fmt;
use std::time::{Duration, Instant};

use super::probe::{self, Probe};
use super::search::{Outcome, search, winner};
use crate::config::DilatedAttentionConfig;
use crate::context::Context;
use crate::device::ElementFormat;
use crate::error::{Error, Result};
use crate::kernels::attention_backward::BackwardFamily;
use crate::kernels::attention_forward::ForwardFamily;
use crate::kernels::matmul::MatmulFamily;
use crate::kernels::remembered::{Timed, Tuner, Winner, Winners, store};

/// What to measure, and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TuneOptions {
    /// After this time no further kernel is tried. A compilation that has begun cannot be cancelled, so the whole may take longer
    /// by one compilation. Kernels that were not tried stay unmeasured until a call with [`again`](Self::again) and a larger
    /// budget.
    pub budget: Duration,
    /// Whether kernels of the backward are measured, too.
    pub backward: bool,
    /// Whether kernels are measured again that have a remembered winner.
    pub again: bool,
}

impl Default for TuneOptions {
    /// 20 seconds, the forward only, nothing again.
    fn default() -> Self {
        Self {
            budget: Duration::from_secs(20),
            backward: false,
            again: false,
        }
    }
}

/// Result of a search for the fastest kernels. Prints as a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TuneReport {
    /// The result for each computation that was tuned.
    pub passes: Vec<TunedPass>,
    /// The reason why the winners could not be saved for later processes; `None` if they were saved or nothing was measured.
    pub not_remembered: Option<String>,
}

/// Result for one computation: the forward, the backward, or a matrix product.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunedPass {
    /// The key under which the winner is remembered: the computation and what the probe depends on.
    pub pass: String,
    /// The kernel that will be used from now on, and the reason.
    pub choice: String,
    /// Every kernel that was considered, with its time or the reason why it was not measured. Empty if nothing was measured.
    pub considered: Vec<(String, String)>,
    /// Time that the search took.
    pub spent: Duration,
}

/// Measures which kernels are the fastest for `config` on this adapter, and remembers the winners. Attentions made from now on use
/// them, and so do later processes if there is a cache folder ([`KernelOptions`](crate::KernelOptions)).
///
/// Nothing is measured if a winner is remembered already, or if there is only one kernel. So an application may call this at every
/// start. It blocks for about the budget, and may run on any thread. Recordings of other threads go on meanwhile, but disturb the
/// measurement.
///
/// ```no_run
/// use dilated_attention::tuning::{TuneOptions, tune};
/// use dilated_attention::{Context, DType, DilatedAttention, DilatedAttentionConfig};
/// let context = Context::new_blocking()?;
/// let config = DilatedAttentionConfig::new(8, 64, &[2048, 8192], &[1, 4])?;
/// println!("{}", tune(&context, &config, &TuneOptions::default())?);
/// let attention = DilatedAttention::new(&context, config)?;
/// println!("{}", attention.forward_kernel(DType::F32)?);
/// # Ok::<(), dilated_attention::Error>(())
/// ```
///
/// # Errors
/// The errors of recording and running, if not even the kernel that suits the device runs.
pub fn tune(
    context: &Context,
    config: &DilatedAttentionConfig,
    options: &TuneOptions,
) -> Result<TuneReport> {
    let begin = Instant::now();
    let mut found = Found::default();
    found.tune(
        context,
        &ForwardFamily::of(config, ElementFormat::F32),
        options,
        options.budget,
    )?;
    if options.backward {
        let left = options.budget.saturating_sub(begin.elapsed());
        let family = BackwardFamily::of(config, ElementFormat::F32);
        found.tune(context, &family, options, left)?;
    }
    Ok(found.remember(context.tuner()))
}

/// As [`tune`], for matrix products whose result has `columns` columns, such as that of a linear layer with as many outputs.
///
/// # Errors
/// As [`tune`]; [`Error::InvalidShape`] for no columns, and for more than 262 144 or than fit in a buffer.
pub fn tune_product(
    context: &Context,
    columns: usize,
    options: &TuneOptions,
) -> Result<TuneReport> {
    let most = probe::most_columns(context.caps());
    if columns == 0 || columns > most {
        return Err(Error::InvalidShape {
            what: "product".into(),
            given: format!("{columns} columns"),
            need: format!("1 to {most}, whose matrices fit in a buffer"),
        });
    }
    let mut found = Found::default();
    let family = MatmulFamily::of_linear_layer(columns as u64);
    found.tune(context, &family, options, options.budget)?;
    Ok(found.remember(context.tuner()))
}

#[derive(Default)]
struct Found {
    passes: Vec<TunedPass>,
    winners: Winners,
}

impl Found {
    fn tune<P: Probe>(
        &mut self,
        context: &Context,
        family: &P,
        options: &TuneOptions,
        budget: Duration,
    ) -> Result<()> {
        let (begin, caps, tuner) = (Instant::now(), context.caps(), context.tuner());
        let remembered = tuner.remembered(family, caps).filter(|_| !options.again);
        let candidates = family.candidates(caps);
        let affordable = candidates
            .iter()
            .filter(|candidate| candidate.compile_time.is_some())
            .count();
        let mut considered = Vec::new();
        if remembered.is_none() && affordable > 1 && !context.is_dry() {
            let mut outcomes = search(
                family.choice(caps).variant,
                &candidates,
                budget,
                |variant| probe::measure(family, context, variant),
            );
            considered = outcomes
                .iter()
                .map(|(variant, outcome)| (variant.to_string(), outcome.to_string()))
                .collect();
            let Some((best, next)) = winner(&outcomes) else {
                return match outcomes.swap_remove(0).1 {
                    Outcome::Failed(error) => Err(error),
                    // Does not happen: the suggested kernel is tried even without budget, so it was measured or has failed.
                    _ => Ok(()),
                };
            };
            let timed = |(variant, run): (P::Variant, Duration)| Timed {
                kernel: P::variant_key(&variant),
                microseconds: u64::try_from(run.as_micros()).unwrap_or(u64::MAX),
            };
            let found = Winner {
                timed: timed(best),
                against: next.map(timed),
            };
            tuner.winners().insert(family.key(), found.clone());
            self.winners.insert(family.key(), found);
        }
        self.passes.push(TunedPass {
            pass: family.key(),
            choice: tuner.choose(family, caps).to_string(),
            considered,
            spent: begin.elapsed(),
        });
        Ok(())
    }

    /// Writes the winners to the user's file. A failure to write goes into the report; it is not an error.
    fn remember(self, tuner: &Tuner) -> TuneReport {
        let not_remembered = match tuner.file() {
            _ if self.winners.is_empty() => None,
            Some(file) => store(file, tuner.adapter(), &self.winners)
                .err()
                .map(|error| format!("{}: {error}", file.display())),
            None => Some("there is no cache folder".to_owned()),
        };
        TuneReport {
            passes: self.passes,
            not_remembered,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Measured(timing) => write!(
                f,
                "{:.2} ms, first {:.2} s",
                timing.run.as_secs_f64() * 1e3,
                timing.first.as_secs_f64()
            ),
            Self::Failed(error) => write!(f, "failed: {error}"),
            Self::Dear => f.write_str("not tried: known to compile for too long"),
            Self::NoTime => f.write_str("not tried: too little time left"),
        }
    }
}

impl fmt::Display for TuneReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for pass in &self.passes {
            writeln!(
                f,
                "{}: {} ({:.1} s)",
                pass.pass,
                pass.choice,
                pass.spent.as_secs_f64()
            )?;
            for (kernel, outcome) in &pass.considered {
                writeln!(f, "    {kernel}: {outcome}")?;
            }
        }
        match &self.not_remembered {
            Some(reason) => writeln!(f, "not remembered: {reason}"),
            None => Ok(()),
        }
    }
}
