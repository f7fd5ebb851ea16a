//! Any bytes, as operations on a pool without a device; the same body runs as a property test in `cargo test`.
//!
//! ```sh
//! cargo install cargo-fuzz && cargo +nightly fuzz run pool
//! ```

#![no_main]

#[path = "../../tests/integration/support/pool_operations.rs"]
mod pool_operations;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pool_operations::run(bytes));
