//! Submissions: work that was submitted as a whole.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result};
use crate::label::Label;
use crate::pool::Pool;
use crate::scope::{self, Caught};
use crate::watch::DeviceWatch;

/// Submitted work.
#[derive(Clone, Debug)]
pub struct Submission {
    watch: Arc<DeviceWatch>,
    index: wgpu::SubmissionIndex,
    is_done: Arc<AtomicBool>,
}

impl Submission {
    /// `is_done` is set when wgpu calls back for the submission.
    pub(crate) fn new(
        watch: Arc<DeviceWatch>,
        index: wgpu::SubmissionIndex,
        is_done: Arc<AtomicBool>,
    ) -> Self {
        Self {
            watch,
            index,
            is_done,
        }
    }

    /// Blocks until the work is done (not in browsers).
    ///
    /// # Errors
    /// [`Error::DeviceLost`] if the device is known to be lost, even if the work was done before.
    pub fn wait(&self) -> Result<()> {
        self.watch
            .wait_until(|_| self.is_done.load(Ordering::Acquire))?;
        self.watch.check_taken(&self.index)
    }
}

/// Where work is submitted to.
pub(crate) struct Destination<'a> {
    pub watch: &'a Arc<DeviceWatch>,
    pub queue: &'a wgpu::Queue,
    /// The pool whose leases the work uses.
    pub pool: &'a Pool,
}

impl Destination<'_> {
    /// Submits the commands that `encode` makes, and counts the submission.
    ///
    /// # Errors
    /// Those of `encode`; [`Error::SubmissionOutOfMemory`], [`Error::Validation`] if wgpu refuses the commands,
    /// [`Error::DeviceLost`].
    pub fn submit(
        &self,
        label: &Label,
        encode: impl FnOnce() -> Result<wgpu::CommandBuffer>,
    ) -> Result<Submission> {
        let submitted = scope::catch(self.watch, || -> Result<_> {
            Ok(self.queue.submit([encode()?]))
        });
        let index = submitted.map_err(|caught| refused(self.pool, label, caught))??;
        // Counted before the leases go back, so that the pool knows that this submission may still use them.
        self.watch.submitted();
        let pool = self.pool.clone();
        let number = pool.submitted();
        let is_done = Arc::new(AtomicBool::new(false));
        let done = is_done.clone();
        let ticket = self.watch.expect(move |_| {
            pool.completed(number);
            done.store(true, Ordering::Release);
        });
        self.watch
            .guard(|| self.queue.on_submitted_work_done(move || ticket.done()))?;
        Ok(Submission::new(self.watch.clone(), index, is_done))
    }
}

/// The error for what the device reported about commands.
pub(crate) fn refused(pool: &Pool, label: &Label, caught: Caught) -> Error {
    match caught {
        Caught::OutOfMemory => Error::SubmissionOutOfMemory {
            label: label.clone(),
            report: Box::new(pool.report()),
        },
        Caught::Refused(reason) => Error::Validation {
            label: label.clone(),
            reason,
        },
        Caught::Lost(reason) => Error::DeviceLost { reason },
    }
}
