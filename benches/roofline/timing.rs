//! Repetitions of one piece of work beside the ceiling it is compared with.

use std::time::Instant;

use dilated_attention::{Context, Recorder, Result};

use crate::ceilings::Ceiling;

/// Work that can be recorded again and again.
pub trait Timed {
    /// Floating point operations, or bytes.
    fn work(&self) -> f64;

    fn record(&self, recorder: &mut Recorder) -> Result<()>;

    /// Seconds from recording to completion.
    fn seconds(&self, context: &Context) -> Result<f64> {
        let started = Instant::now();
        let mut recorder = context.recorder("timed");
        self.record(&mut recorder)?;
        recorder.submit()?.wait()?;
        Ok(started.elapsed().as_secs_f64())
    }
}

/// Lower quartile and so on are noise with so few repetitions: median, least, most.
pub fn spread(mut values: Vec<f64>) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    (
        values[values.len() / 2],
        values[0],
        values[values.len() - 1],
    )
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

pub fn header(group: &str, unit: &str) {
    println!(
        "\n{group:<24} {:<18} {:>7} {:>10} {:>22} {:>22}",
        "kernel",
        "first s",
        "median ms",
        format!("{unit} (range)"),
        "% of ceiling (range)"
    );
}

/// One row of a table; the ceiling is measured before each repetition.
pub fn row(
    context: &Context,
    ceiling: &Ceiling,
    repetitions: usize,
    [name, kernel]: [&str; 2],
    timed: &impl Timed,
) -> Result<()> {
    let first = timed.seconds(context)?;
    let (mut seconds, mut shares) = (Vec::new(), Vec::new());
    for _ in 0..repetitions {
        let most = ceiling.rate(context.device(), context.queue());
        let time = timed.seconds(context)?;
        seconds.push(time);
        shares.push(timed.work() / time / most * 100.0);
    }
    let (median, least, most) = spread(seconds);
    let (share, lowest, highest) = spread(shares);
    let rate = |time: f64| timed.work() / time / 1e9;
    println!(
        "{name:<24} {kernel:<18} {first:>7.2} {:>10.2} {:>22} {:>22}",
        median * 1e3,
        format!(
            "{:.1} ({:.1} to {:.1})",
            rate(median),
            rate(most),
            rate(least)
        ),
        format!("{share:.0} ({lowest:.0} to {highest:.0})"),
    );
    Ok(())
}
