//! What can go wrong with a pool of buffers.

use crate::label::Label;
use crate::pool_figures::PoolReport;

/// Why a [`Pool`](crate::Pool) has not lent a buffer, or a trace of one cannot be read. In a call that does more than that it is an
/// [`Error`](super::Error): [`Error::DeviceLost`](super::Error::DeviceLost) and [`Error::Validation`](super::Error::Validation) where
/// it is `DeviceLost` or `Refused`, else [`Error::Pool`](super::Error::Pool).
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PoolError {
    /// A buffer of no bytes was asked for; WebGPU cannot bind one.
    #[error("a buffer of 0 bytes was asked for as '{label}'; skip the work instead")]
    ZeroSize {
        /// Label of the request.
        label: Label,
    },
    /// Usages that no buffer of this pool may combine.
    #[error("'{label}' asks for usages {usage:?}, which contradict each other: {reason}")]
    InvalidUsage {
        /// Label of the request.
        label: Label,
        /// The usages asked for.
        usage: wgpu::BufferUsages,
        /// Why they cannot be combined.
        reason: &'static str,
    },
    /// One buffer would be larger than the device allows.
    #[error(
        "'{label}' needs a buffer of {requested_bytes} bytes, the device allows {limit_bytes} (max_buffer_size): request the adapter's own limits or shorten the input"
    )]
    BufferTooLarge {
        /// Label of the request.
        label: Label,
        /// Bytes asked for.
        requested_bytes: u64,
        /// Bytes of the largest buffer of the device.
        limit_bytes: u64,
    },
    /// The pool's hard budget does not allow another buffer, and nothing cached is left to give up.
    #[error(
        "'{label}' needs a buffer of {requested_bytes} bytes (what was asked for, rounded up to a size class), but the pool's budget is {budget_bytes} bytes and {leased_bytes} are in use: raise the budget or drop tensors first\n{report}"
    )]
    BudgetExceeded {
        /// Label of the request.
        label: Label,
        /// Bytes of the buffer that would have been created: the size class, not what the caller asked for.
        requested_bytes: u64,
        /// The budget, in bytes.
        budget_bytes: u64,
        /// Bytes of buffers leased at that moment.
        leased_bytes: u64,
        /// State of the pool.
        report: Box<PoolReport>,
    },
    /// The device has no memory left, after everything cached was given up.
    #[error(
        "the device has no memory for '{label}', a buffer of {requested_bytes} bytes (what was asked for, rounded up to a size class), with {leased_bytes} in use: drop tensors or shorten the input\n{report}"
    )]
    OutOfMemory {
        /// Label of the request.
        label: Label,
        /// Bytes of the buffer that could not be created: the size class, not what the caller asked for.
        requested_bytes: u64,
        /// Bytes of buffers leased at that moment.
        leased_bytes: u64,
        /// State of the pool.
        report: Box<PoolReport>,
    },
    /// The device is lost; nothing on it can be read any more.
    #[error("the device is lost ({reason}): make a new context and upload again")]
    DeviceLost {
        /// What the device, the application or the mapping said; never empty.
        reason: String,
    },
    /// The device refused a buffer for another reason than memory, though the pool believed it valid: a defect worth reporting.
    #[error("wgpu refused '{label}': {reason}")]
    Refused {
        /// Label of the request.
        label: Label,
        /// The device's words.
        reason: String,
    },
    /// A saved trace of a pool cannot be read.
    #[error("line {line} of the trace is no event: {need} expected")]
    InvalidTrace {
        /// Number of the line, from 1.
        line: u64,
        /// What it should have.
        need: &'static str,
    },
}
