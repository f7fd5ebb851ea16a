//! [`tune`] and what it tells.

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

/// How long and what to measure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TuneOptions {
    /// Nothing new is begun after this time. What is being compiled then cannot be cancelled, so the whole may take longer
    /// by one compilation. What was not begun stays unmeasured until asked for [`again`](Self::again) with more time.
    pub budget: Duration,
    /// Kernels of the backward, too.
    pub backward: bool,
    /// Also what is remembered already.
    pub again: bool,
}

impl Default for TuneOptions {
    /// 20 seconds, the forward only, nothing twice.
    fn default() -> Self {
        Self {
            budget: Duration::from_secs(20),
            backward: false,
            again: false,
        }
    }
}

/// What a search for the fastest kernels found. Prints as a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TuneReport {
    /// Each pass.
    pub passes: Vec<TunedPass>,
    /// Why the result will not be remembered beyond this context, if so.
    pub not_remembered: Option<String>,
}

/// What was found for one pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunedPass {
    /// What was probed.
    pub pass: String,
    /// The kernel from now on, and why.
    pub choice: String,
    /// Every kernel that was considered and what became of it; none where nothing was measured.
    pub considered: Vec<(String, String)>,
    /// Time that this took.
    pub spent: Duration,
}

/// Measures which kernels are the fastest for `config` on this adapter, and remembers them: attentions made from now on
/// use them, and so do those of later processes ([`KernelOptions`](crate::KernelOptions) says where that is kept). What is
/// remembered already is not measured again, and where there is only one kernel nothing is measured, so that an
/// application may call this at every start.
///
/// Blocks for about the budget, on any thread; recordings of other threads go on meanwhile (and disturb the measurement).
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
/// Those of recording and running, when not even the usual kernel runs.
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

/// As [`tune`], of products with so many columns, such as those of a linear layer with so many outputs.
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
            what: "product",
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
                    // The suggested kernel is tried whatever the budget.
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

    /// Writes what was measured to the user's file. That it cannot be written is told, but no reason to fail.
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
