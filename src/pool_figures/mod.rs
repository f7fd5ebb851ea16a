//! Figures and reports of a pool, as plain data. They stand on a floor below the pool, because errors carry them.
//! [`pool`](crate::pool) re-exports them.

mod report;
mod stats;

pub use report::{ClassUse, LabelUse, LeaseInfo, PoolReport, ScopeReport};
pub use stats::{Counter, Evictions, PoolStats};
