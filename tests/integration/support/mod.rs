//! What several test modules use.

pub mod contexts;
pub mod numbers;
