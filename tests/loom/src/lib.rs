//! The pool's shards under a model checker: every order in which threads may meet, up to a bound of preemptions.
//!
//! The files are the pool's own; only what the locks and counters come from differs (`sync.rs`).
//!
//! ```sh
//! cargo test --release --manifest-path tests/loom/Cargo.toml
//! ```

#![cfg(test)]
#![allow(
    dead_code,
    unused_imports,
    reason = "the models use a part of the pool"
)]

mod wgpu {
    pub use wgpu_types::BufferUsages;

    /// Never made here.
    pub struct Buffer;
}

#[path = "../../../src/label.rs"]
mod label;

#[path = "../../../src/pool_figures/mod.rs"]
mod pool_figures;

#[path = "../../../src/pool"]
mod pool {
    mod acquire;
    mod locked_pool;
    pub mod core;
    mod event;
    pub mod lease;
    mod ledger;
    mod lists;
    #[path = "../../tests/loom/src/models.rs"]
    mod models;
    pub mod policy;
    pub mod shard;
    pub mod size_class;
    pub mod source;
    mod stats;
    mod sync;
}
