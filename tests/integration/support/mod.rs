//! What several test modules use.

pub mod contexts;
pub mod failing_source;
pub mod giving_up;
pub mod gradients;
pub mod kernel_contexts;
pub mod models;
pub mod numbers;
pub mod problem;
pub mod training;
