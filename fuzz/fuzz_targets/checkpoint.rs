//! Any bytes, as a checkpoint of a small slide encoder on a dry run, which needs no device; the same body runs as a property
//! test in `cargo test`.
//!
//! ```sh
//! cargo install cargo-fuzz && cargo +nightly fuzz run checkpoint
//! ```

#![no_main]

use dilated_attention::models::gigapath::SlideEncoder;
use dilated_attention::{Context, DeviceCaps};
use testing::fuzzing::checkpoint;

thread_local! {
    static PLANNED: (Context, SlideEncoder) = {
        let dry_run = Context::dry_run(DeviceCaps::webgpu_defaults());
        let encoder = checkpoint::encoder(&dry_run);
        (dry_run, encoder)
    };
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    PLANNED.with(|(dry_run, encoder)| {
        drop(checkpoint::run(dry_run, encoder, bytes));
        assert_eq!(dry_run.pool().stats().leases.current, 0);
    });
});
