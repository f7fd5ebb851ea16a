//! Any bytes, as a file of weights of which everything is read; the same body runs as a property test in `cargo test`.
//!
//! ```sh
//! cargo install cargo-fuzz && cargo +nightly fuzz run weights
//! ```

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    testing::fuzzing::weights::run(bytes);
});
