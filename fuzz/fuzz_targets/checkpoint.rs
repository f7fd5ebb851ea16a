//! Any bytes, as a checkpoint of a small slide encoder on a planner, which needs no device; the same body runs as a property
//! test in `cargo test`.
//!
//! ```sh
//! cargo install cargo-fuzz && cargo +nightly fuzz run checkpoint
//! ```

#![no_main]

use dilated_attention::models::gigapath::SlideEncoder;
use dilated_attention::{Context, DeviceFacts};

#[path = "../../tests/integration/support/checkpoint_loading.rs"]
mod checkpoint_loading;

thread_local! {
    static PLANNED: (Context, SlideEncoder) = {
        let planner = Context::planner(DeviceFacts::webgpu_defaults());
        let encoder = checkpoint_loading::encoder(&planner);
        (planner, encoder)
    };
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    PLANNED.with(|(planner, encoder)| {
        drop(checkpoint_loading::run(planner, encoder, bytes));
        assert_eq!(planner.pool().stats().leases.current, 0);
    });
});
