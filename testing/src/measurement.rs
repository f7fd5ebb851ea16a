//! What benchmarks of every implementation share: inputs, repetitions, errors, dates.

use std::time::{SystemTime, UNIX_EPOCH};

/// Median, least, most: quartiles are noise with so few repetitions.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Spread {
    /// Of an even number of values the larger one in the middle.
    pub median: f64,
    /// The smallest value.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// The spread of at least one value.
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        Self {
            median: values[values.len() / 2],
            min: values[0],
            max: values[values.len() - 1],
        }
    }

    /// The spread of changed values; `change` may turn their order round.
    pub fn map(self, change: impl Fn(f64) -> f64) -> Self {
        let [median, a, b] = [self.median, self.min, self.max].map(change);
        Self {
            median,
            min: a.min(b),
            max: a.max(b),
        }
    }
}

/// The same numbers between -1 and 1 in every run.
pub fn random() -> impl FnMut() -> f32 {
    let mut state = 88_172_645_463_325_252u64;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

/// Tokens whose rows are compared with a reference: the first, the last and some between.
pub fn sampled_rows(tokens: usize) -> Vec<(usize, usize)> {
    let count = tokens.min(16);
    let last = tokens - 1;
    (0..count)
        .map(|i| (0, i * last / (count.max(2) - 1)))
        .collect()
}

/// Largest difference of `results` from `expected` over 1e-5 of the largest expected value: what the crate's tests allow
/// results in f32. Infinite where a result is no number.
pub fn error_f32(results: impl IntoIterator<Item = f32>, expected: &[f64]) -> f64 {
    let mut largest = 0.0f64;
    let (mut error, mut count) = (0.0f64, 0);
    for (result, expected) in results.into_iter().zip(expected) {
        largest = largest.max(expected.abs());
        let difference = (f64::from(result) - expected).abs();
        error = if difference.is_finite() {
            error.max(difference)
        } else {
            f64::INFINITY
        };
        count += 1;
    }
    assert_eq!(count, expected.len(), "as many results as expected ones");
    error / (largest * 1e-5)
}

/// As [`error_f32`] of results in half precision: over twice the error of `plain`, which stores that type and computes in f32,
/// or 1e-5 of the largest value if that is more.
pub fn error_half(results: impl IntoIterator<Item = f32>, expected: &[f64], plain: &[f32]) -> f64 {
    let of_plain = error_f32(plain.iter().copied(), expected);
    error_f32(results, expected) / (2.0 * of_plain).max(1.0)
}

/// "median (min to max)".
pub fn range(spread: Spread, digits: usize) -> String {
    let Spread { median, min, max } = spread;
    format!("{median:.digits$} ({min:.digits$} to {max:.digits$})")
}

/// Today in UTC, year-month-day.
pub fn date() -> String {
    let seconds = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let is_leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let (mut year, mut day) = (1970, seconds / 86_400);
    while day >= 365 + u64::from(is_leap(year)) {
        day -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let february = 28 + u64::from(is_leap(year));
    let mut month = 1;
    for days in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if day < days {
            break;
        }
        day -= days;
        month += 1;
    }
    format!("{year}-{month:02}-{:02}", day + 1)
}
