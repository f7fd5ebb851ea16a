//! What several test modules use.

pub mod adapter;
pub mod numbers;
pub mod plain;
pub mod problem;
