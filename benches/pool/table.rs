//! The table of goals, and medians.

use std::fmt;

/// Goals, what was measured, what was asked for.
#[derive(Default)]
pub struct Table {
    rows: Vec<(String, String, String, bool)>,
}

impl Table {
    pub fn at_least(&mut self, goal: impl Into<String>, measured: f64, asked: f64) {
        let row = (goal.into(), number(measured), number(asked));
        self.rows
            .push((row.0, row.1, format!(">= {}", row.2), measured >= asked));
    }

    pub fn at_most(&mut self, goal: impl Into<String>, measured: f64, asked: f64) {
        let row = (goal.into(), number(measured), number(asked));
        self.rows
            .push((row.0, row.1, format!("<= {}", row.2), measured <= asked));
    }
}

fn number(value: f64) -> String {
    if value == value.trunc() && value < 1e9 {
        format!("{value}")
    } else if value >= 100.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.3}")
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<62} {:>10} {:>10}", "goal", "measured", "asked")?;
        for (goal, measured, asked, holds) in &self.rows {
            let holds = if *holds { "" } else { "  MISSED" };
            writeln!(f, "{goal:<62} {measured:>10} {asked:>10}{holds}")?;
        }
        Ok(())
    }
}

/// Several measurements of one thing.
#[derive(Clone, Default)]
pub struct Samples(Vec<f64>);

impl Samples {
    pub fn add(&mut self, sample: f64) {
        self.0.push(sample);
    }

    pub fn median(&self) -> f64 {
        self.sorted()[self.0.len() / 2]
    }

    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }
}

impl fmt::Display for Samples {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sorted = self.sorted();
        let number = |value: f64| {
            if value < 10.0 {
                format!("{value:.2}")
            } else {
                format!("{value:.0}")
            }
        };
        let [least, most] = [sorted[0], sorted[sorted.len() - 1]].map(number);
        f.pad(&format!("{} ({least} to {most})", number(self.median())))
    }
}
