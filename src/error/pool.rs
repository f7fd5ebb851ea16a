//! Errors of a pool of buffers.

use crate::label::Label;
use crate::pool_figures::PoolReport;

/// Why a [`Pool`](crate::Pool) did not lend a buffer, or why a trace of a pool cannot be read. Calls that return an
/// [`Error`](super::Error) turn `DeviceLost` into [`Error::DeviceLost`](super::Error::DeviceLost), `Refused` into
/// [`Error::Validation`](super::Error::Validation), and the others into [`Error::Pool`](super::Error::Pool).
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PoolError {
    /// A buffer of 0 bytes was requested, which WebGPU cannot bind.
    #[error("a buffer of 0 bytes was asked for as '{label}'; skip the work instead")]
    ZeroSize {
        /// Label of the request.
        label: Label,
    },
    /// The requested usages cannot be combined in a buffer of this pool, or a lease lacks a usage that a call needs.
    #[error("'{label}' has the wrong usages {usage:?}: {reason}")]
    InvalidUsage {
        /// Label of the request.
        label: Label,
        /// The usages asked for, or those of the lease.
        usage: wgpu::BufferUsages,
        /// What is wrong with them, or what is missing.
        reason: &'static str,
    },
    /// The buffer would be larger than the device allows.
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
    /// The pool's budget does not allow another buffer, even after all cached buffers were dropped.
    #[error(
        "'{label}' needs a buffer of {requested_bytes} bytes (what was asked for, rounded up to a size class), but the pool's budget is {budget_bytes} bytes and {leased_bytes} are in use: raise the budget, or first drop tensors, leases or downloads\n{report}"
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
    /// The device has no memory left, even after all cached buffers were dropped.
    #[error(
        "the device has no memory for '{label}', a buffer of {requested_bytes} bytes (what was asked for, rounded up to a size class), with {leased_bytes} in use: drop tensors, leases or downloads, or shorten the input\n{report}"
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
        /// The reason, as told by the driver, the application or a failed mapping; never empty.
        reason: String,
    },
    /// wgpu refused a buffer that the pool considers valid, for another reason than memory. This is a defect worth reporting.
    #[error("wgpu refused '{label}': {reason}")]
    Refused {
        /// Label of the request.
        label: Label,
        /// wgpu's message.
        reason: String,
    },
    /// A saved trace of a pool cannot be read.
    #[error("line {line} of the trace is no event: {need} expected")]
    InvalidTrace {
        /// Number of the line, counted from 1.
        line: u64,
        /// What the line should contain.
        need: &'static str,
    },
}
