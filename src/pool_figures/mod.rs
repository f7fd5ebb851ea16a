//! What a pool tells of itself: plain data, on a floor below the pool, for errors carry it. [`pool`](crate::pool) has it all.

mod report;
mod stats;

pub use report::{ClassUse, LabelUse, LeaseInfo, PoolReport, ScopeReport};
pub use stats::{Counter, Evictions, PoolStats};
