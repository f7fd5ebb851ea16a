//! Work that comes as recordings, one after the other, and how it is submitted.

use crate::error::Result;
use crate::recorder::{Recorder, SliceOptions};

/// Bytes that one recording uploads, about: staging memory is as large.
pub(super) const UPLOAD_BYTES: usize = 16 << 20;

/// A model's work over one input.
pub(super) trait Recordings {
    /// The next, `None` after the last.
    fn next(&mut self) -> Result<Option<Recorder>>;

    /// How many there are.
    fn count(&self) -> usize;

    /// How many were handed out.
    fn handed_out(&self) -> usize;

    /// Operations of recording `step`, roughly: those of its products.
    fn operations(&self, step: usize) -> f64;

    /// The fraction of the run's operations that is done, from 0 to 1. Recordings before the one handed out last count as
    /// done; of the last, the fraction `within` (0 to 1) is done.
    fn fraction(&self, within: f64) -> f64 {
        let operations = |steps: std::ops::Range<usize>| -> f64 {
            steps.map(|step| self.operations(step)).sum()
        };
        match self.handed_out().checked_sub(1) {
            None => 0.0,
            Some(last) => {
                let done = operations(0..last) + within * self.operations(last);
                done / operations(0..self.count())
            }
        }
    }
}

/// Submits everything in slices.
pub(super) async fn in_slices(
    run: &mut impl Recordings,
    slices: SliceOptions,
    mut progress: impl FnMut(f64),
) -> Result<()> {
    while let Some(recorder) = run.next()? {
        recorder
            .submit_in_slices(slices)
            .run(|within| progress(run.fraction(within.fraction())))
            .await?;
    }
    Ok(())
}

/// Submits everything at once, but for the staging memory: that of two recordings at most is in use.
#[cfg(not(target_arch = "wasm32"))]
pub(super) fn at_once(run: &mut impl Recordings) -> Result<()> {
    let mut before: Option<crate::recorder::Submission> = None;
    while let Some(recorder) = run.next()? {
        if let Some(before) = before.replace(recorder.submit()?) {
            before.wait()?;
        }
    }
    Ok(())
}
