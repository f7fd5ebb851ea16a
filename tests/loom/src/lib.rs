//! The pool's shards under a model checker: every order in which threads may meet, up to a bound of preemptions.
//!
//! The files are the pool's own, taken in by their paths: loom has to stand in the place of the locks and counters that they are
//! compiled with (`sync.rs`), which a built library cannot offer.
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
    mod import;
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
