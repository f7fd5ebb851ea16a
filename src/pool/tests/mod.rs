//! The pool on simulated buffers and on wgpu's noop device. What needs a real one is among the integration tests.

mod device;
#[cfg(feature = "tracing")]
mod events;
mod figures;
mod ledger;
mod model;
mod policy;
mod shards;
mod threads;
mod traces;
