//! Any bytes, as operations on a pool without a device; the same body runs as a property test in `cargo test`.
//!
//! ```sh
//! cargo install cargo-fuzz && cargo +nightly fuzz run pool
//! ```

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| testing::fuzzing::pool::run(bytes));
