//! LongNet: segmented dilated attention, the models around it and their training, as WGSL compute shaders on wgpu over one pool
//! of GPU buffers.
//!
//! Data flows one way:
//!
//! ```text
//! DilatedAttentionConfig, AttentionShape     what to compute: options; batch size and lengths of one call
//!   -> ForwardPlan, BackwardPlan             how: dispatches, windows, bytes, work; plain data, made without a device
//!   -> Context, Pool, Tensor                 where: a device, its buffers, arrays in them
//!   -> Recorder                              commands in order: uploads, forwards, backwards, downloads
//!   -> Submission, SlicedSubmission          submitted at once, or in slices between an application's frames
//!   -> Download                              results on the host
//! ```
//!
//! What is built of that, each on the one before:
//!
//! ```text
//! attention::DilatedAttention   forward and backward of attention alone
//! ops                           matrices: products, norms, activations, positions, losses, the optimiser's step
//! nn                            layers with parameters
//! longnet::LongNet              encoder, decoder, language model; decoding with a cache
//! models                        GigaPath's slide encoder, LongViT
//! weights, training             safetensors; steps, schedules, checkpoints
//! ```
//!
//! [`DilatedAttention`] and [`training::Trainer`] have examples to start from. [`config`] defines the options,
//! [`reference`](mod@reference) the results in f64, [`pool`] says when a buffer is used again, [`recorder`] what is kept alive
//! until when, [`context`] how to bring a device or plan without one. The [`guide`] goes from a PyTorch checkpoint to a
//! desktop application.
//!
//! Tensors are row-major, (batch B, token N, head H, element D), f32.

// rustdoc asks of every type whether it is Sync, down to the depths of wgpu.
#![recursion_limit = "256"]
#![warn(missing_docs)]
#![deny(unsafe_code)]

// 1: what to compute, and how
pub mod config;
pub mod device;
pub mod plan;

// 2: where it runs, and in which memory
pub mod context;
pub mod pool;
pub mod tensor;

// 3: shaders, recorded commands, results
pub mod kernels;
pub mod readback;
pub mod recorder;
pub mod tuning;

// 4: what you call
pub mod attention;
pub mod longnet;
pub mod models;
pub mod nn;
pub mod ops;
pub mod training;
pub mod weights;

#[doc = include_str!("../docs/from_checkpoint_to_desktop_app.md")]
pub mod guide {}

// beside: errors, what was written, and the f64 oracle
mod contents;
pub mod error;
mod poller;
pub mod reference;
mod scope;
mod watch;

pub use attention::{DilatedAttention, ForwardOutput, Gradients, UNCOVERED_LSE, softmax_lse};
pub use config::{
    AttentionShape, Branch, DilatedAttentionConfig, HeadOffsets, Heads, Mask, MixGradient,
    OutputRows, Padding,
};
pub use context::{AdapterChoice, Context, ContextOptions, WarmUp};
pub use device::{DType, DeviceFacts, Element};
pub use error::{Error, Result};
pub use plan::{BackwardPlan, ForwardPlan};
pub use pool::{Lease, PersistentBuffer, Pool, PoolOptions, PoolReport, PoolStats};
pub use readback::Download;
pub use recorder::{Recorder, Submission};
pub use tensor::Tensor;
pub use tuning::{CacheFolder, KernelOptions};
pub use weights::{WeightFile, WeightSource, WeightWriter};

pub use half;
pub use wgpu;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeDoctests;
