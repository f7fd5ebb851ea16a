//! Which of several kernels that compute the same is the fastest here: known, measured, remembered.
//!
//! ```text
//! by the adapter's capabilities       always, without measuring                 Family::choice
//! by a remembered probe        when there is one for this adapter,       the user's file, or one that was shipped
//!                              driver and version
//! by a probe                   when an application asks: tuning::tune    remembered from then on
//! ```
//! Nothing is ever measured unasked: a probe compiles kernels, which takes seconds on some drivers and cannot be cancelled.
//! An application calls [`tune`] where its user expects to wait, or on a thread; later starts find the result and
//! measure nothing. Every plan prints the kernel it chose and why.

mod probe;
mod report;
mod search;

pub use report::{TuneOptions, TuneReport, TunedPass, tune, tune_product};
