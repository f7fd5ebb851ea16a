//! Result lines: `PASS|FAIL|SKIP file tensor max_abs_err tolerance [reason]`, always with these columns.

use std::collections::BTreeSet;
use std::fmt;

use dilated_attention::device::KernelTier;
use dilated_attention::testing::Kernel;

use super::compare::Comparison;
use super::golden_file::GoldenFile;

/// What became of one comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Within the tolerance.
    Pass,
    /// Not within it, or impossible.
    Fail,
    /// Not made, for a stated reason.
    Skip,
}

/// One line.
#[derive(Clone, Debug)]
pub struct Line {
    outcome: Outcome,
    file: String,
    tensor: String,
    /// Largest absolute error, and its tolerance.
    pub error_and_tolerance: Option<(f64, f64)>,
    reason: String,
    /// Of a comparison, how many of the kernels that ran for it are of the tier asked for, and how many of any.
    of_tier: Option<(usize, usize)>,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let outcome = match self.outcome {
            Outcome::Pass => "PASS",
            Outcome::Fail => "FAIL",
            Outcome::Skip => "SKIP",
        };
        write!(
            f,
            "{outcome} {} {}",
            one_word(&self.file),
            one_word(&self.tensor)
        )?;
        match self.error_and_tolerance {
            Some((error, tolerance)) => write!(f, " {error:.3e} {tolerance:.3e}")?,
            None => write!(f, " - -")?,
        }
        if !self.reason.is_empty() {
            // Whatever an error or a file's header says stays on this line.
            let words: Vec<_> = self.reason.split_whitespace().collect();
            write!(f, " {}", words.join(" ").replace(char::is_control, "?"))?;
        }
        Ok(())
    }
}

/// How many lines there were of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Summary {
    /// Comparisons within their tolerance.
    pub passed: usize,
    /// Comparisons that failed.
    pub failed: usize,
    skipped: usize,
    /// The largest error as a part of its tolerance.
    pub worst: f64,
    /// Comparisons of what kernels of the tier asked for computed: alone, with others, not.
    pub by_tier: [usize; 3],
}

impl Summary {
    /// Counts one line.
    pub fn add(&mut self, line: &Line) {
        *match line.outcome {
            Outcome::Pass => &mut self.passed,
            Outcome::Fail => &mut self.failed,
            Outcome::Skip => &mut self.skipped,
        } += 1;
        if let Some((error, tolerance)) = line.error_and_tolerance
            && tolerance > 0.0
        {
            self.worst = self.worst.max(error / tolerance);
        }
        if let Some((of_tier, all)) = line.of_tier {
            let share = match of_tier {
                0 => 2,
                _ if of_tier < all => 1,
                _ => 0,
            };
            self.by_tier[share] += 1;
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            passed,
            failed,
            skipped,
            ..
        } = self;
        write!(f, "{passed} passed, {failed} failed, {skipped} skipped")
    }
}

/// Names come from outside; in a column they must be one word.
fn one_word(name: &str) -> String {
    name.replace(|c: char| c.is_whitespace() || c.is_control(), "?")
}

/// The lines of one file.
pub struct Report {
    file: String,
    lines: Vec<Line>,
    /// The tier asked for; lines name the kernels then.
    tier: Option<KernelTier>,
    /// What ran since the comparisons before.
    kernels: Vec<Kernel>,
    /// Whether something was compared since.
    compared: bool,
}

impl Report {
    /// An empty report on `file`, with kernels of `tier` where one was asked for.
    pub fn new(file: &str, tier: Option<KernelTier>) -> Self {
        Self {
            file: file.to_owned(),
            lines: Vec::new(),
            tier,
            kernels: Vec::new(),
            compared: false,
        }
    }

    /// Notes which kernels computed what is compared next.
    pub fn ran(&mut self, kernels: Vec<Kernel>) {
        if std::mem::take(&mut self.compared) {
            self.kernels.clear();
        }
        self.kernels.extend(kernels);
    }

    /// Adds a comparison; `tolerance` is the largest error that passes.
    pub fn compared(&mut self, tensor: &str, comparison: Comparison, tolerance: f64) {
        // Written so that an error of NaN fails.
        let outcome = if comparison.max_abs_err <= tolerance {
            Outcome::Pass
        } else {
            Outcome::Fail
        };
        let numbers = Some((comparison.max_abs_err, tolerance));
        self.add(outcome, tensor, numbers, String::new());
        self.compared = true;
        if let (Some(tier), Some(line)) = (self.tier, self.lines.last_mut()) {
            let of_a_tier = self.kernels.iter().filter(|kernel| kernel.tier().is_some());
            let names: BTreeSet<_> = of_a_tier.clone().map(Kernel::name).collect();
            let names: Vec<_> = names.into_iter().collect();
            line.reason = match names.is_empty() {
                true => "by no kernel that has tiers".to_owned(),
                false => format!("by {}", names.join(" ")),
            };
            let of_tier = of_a_tier
                .clone()
                .filter(|kernel| kernel.tier() == Some(tier));
            line.of_tier = Some((of_tier.count(), of_a_tier.count()));
        }
    }

    /// Adds a failure that is not one of numbers.
    pub fn fail(&mut self, tensor: &str, reason: impl fmt::Display) {
        self.add(Outcome::Fail, tensor, None, reason.to_string());
    }

    /// Adds a comparison not made.
    pub fn skip(&mut self, tensor: &str, reason: impl fmt::Display) {
        self.add(Outcome::Skip, tensor, None, reason.to_string());
    }

    fn add(
        &mut self,
        outcome: Outcome,
        tensor: &str,
        error_and_tolerance: Option<(f64, f64)>,
        reason: String,
    ) {
        self.lines.push(Line {
            outcome,
            file: self.file.clone(),
            tensor: tensor.to_owned(),
            error_and_tolerance,
            reason,
            of_tier: None,
        });
    }

    /// Reports every result in `file` that no line is about as not checked, for `reason`. Inputs and weights are not results.
    pub fn skip_rest(&mut self, file: &GoldenFile, reason: &str) {
        let reported: BTreeSet<String> =
            self.lines.iter().map(|line| line.tensor.clone()).collect();
        for name in file.names() {
            let input = INPUTS.contains(&name)
                || INPUT_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
            if !input && !reported.contains(name) {
                self.skip(name, reason);
            }
        }
        if self.lines.is_empty() {
            self.fail("-", "the file holds nothing to compare");
        }
    }

    /// The lines in the order added.
    pub fn into_lines(self) -> Vec<Line> {
        self.lines
    }
}

/// Tensors that calls are fed with, or that are for information.
const INPUTS: [&str; 12] = [
    "q",
    "k",
    "v",
    "dout",
    "x",
    "tokens",
    "padding_mask",
    "image",
    "coords",
    "rows",
    "hidden_absmax",
    "hidden_rms",
];

/// Beginnings of the names of weights, and of a float32 run's own results.
const INPUT_PREFIXES: [&str; 2] = ["w.", "f32."];
