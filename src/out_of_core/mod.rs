//! Attention, and layers, over sequences that the device does not hold.
//!
//! Queries, keys, values and outputs stay where the host has them: in memory, in files ([`TokenFile`]), or wherever a [`TokenSource`] and
//! a [`TokenSink`] of the application's get them from and put them. The device holds a block of outputs at a time, with the queries and
//! keys that it takes; its memory is bounded by a budget, whatever the length of the sequence.
//!
//! ```text
//! pass 1   for each block of tokens: keys and values are read once, and what branches with long segments and a dilation rate above
//!          1 will need of them is kept on the host, packed: every rate-th token of each head
//! pass 2   for each block of outputs: queries, and keys and values of short segments, are read; windows of packed keys follow; at
//!          rate 1, long segments are read again, window after window
//! ```
//! Output and softmax state of a block stay on the device, in f32, until every key of theirs was seen; then the output is written
//! once. While the device computes, the host reads what comes next. Of a layer (`LongNet::run_layer_out_of_core`), its input is read, and
//! queries, keys and values are computed of that; what follows attention in the layer comes before a block is written.
//!
//! A run goes on after a kill where it was: [`OutOfCoreOptions::with_progress_file`].
//!
//! ```no_run
//! use std::ops::Range;
//! use dilated_attention::out_of_core::{Generated, OutOfCoreOptions};
//! use dilated_attention::{Context, DType, DilatedAttention, DilatedAttentionConfig};
//!
//! # fn main() -> dilated_attention::Result<()> {
//! let context = Context::new_blocking()?;
//! let config = DilatedAttentionConfig::new(1, 16, &[4096, 65_536], &[1, 16])?;
//! let attention = DilatedAttention::new(&context, config)?;
//! let tokens = 1 << 24;
//! let plan = attention.plan_out_of_core(tokens, DType::F32, &OutOfCoreOptions::new(256 << 20))?;
//! println!("{plan}");
//! // Each of q, k and v is 1 GiB, and is nowhere as a whole.
//! let x = Generated::new(|tokens: Range<usize>, rows: &mut [f32]| {
//!     for (token, row) in tokens.zip(rows.chunks_mut(16)) {
//!         row.fill((token as f32).sin());
//!     }
//! });
//! let mut out = vec![0f32; tokens * 16];
//! let mut run = attention.run_out_of_core(&plan, [&x, &x, &x], &mut out)?;
//! while !run.is_done() {
//!     println!("{:.0} %", 100.0 * run.advance()?.fraction());
//! }
//! # Ok(())
//! # }
//! ```

mod device;
mod file;
mod packed;
mod plan;
mod progress;
mod run;
mod tokens;

#[cfg(feature = "models")]
pub(crate) use device::AttentionLayer;
pub use file::TokenFile;
#[cfg(feature = "models")]
pub(crate) use plan::LayerNeeds;
pub use plan::{OutOfCoreOptions, OutOfCorePlan};
#[cfg(feature = "models")]
pub(crate) use run::Inputs;
pub use run::OutOfCoreRun;
pub use tokens::{Generated, TokenSink, TokenSource};
