//! Tuning: measures which of several kernels with the same result is the fastest on this device.
//!
//! A kernel is chosen in one of three ways:
//! ```text
//! for the kind of device    always possible, nothing is measured           Family::choice
//! by a remembered winner    if this adapter, driver and version have one   the user's winners file, or a shipped one
//! by a timed probe          only when an application calls tune            the winner is remembered
//! ```
//! Nothing is measured unless an application asks for it, because a probe compiles kernels, which takes seconds on some drivers and
//! cannot be cancelled. An application should call [`tune`] where its user expects to wait, or on a thread of its own. Later starts
//! find the winners and measure nothing. Every plan prints which kernel was chosen and why.

mod probe;
mod report;
mod search;

pub use report::{TuneOptions, TuneReport, TunedPass, tune, tune_product};
