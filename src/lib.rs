//! LongNet: segmented dilated attention, models built on it, and their training, as WGSL compute shaders on wgpu over one pool of
//! GPU buffers.
//!
//! From options to results:
//!
//! ```text
//! DilatedAttentionConfig, CallOptions        what to compute: options of attention; options of one call
//! AttentionShape                             shape of a call, for plans and models, which need it before there are tensors
//!   -> ForwardPlan, BackwardPlan             how: dispatches, windows, bytes, work; plain data, made without a device
//!   -> Context, Pool, Tensor                 where: a device, its buffers, arrays in them
//!   -> Recorder                              commands in order: uploads, forwards, backwards, downloads
//!   -> Submission, SlicedSubmission          submitted at once, or in slices between an application's frames
//!   -> Download                              results on the host
//! ```
//!
//! What is built on that, each layer on the one before:
//!
//! ```text
//! attention::DilatedAttention   forward and backward of attention alone
//! out_of_core                   the forward of sequences that the device does not hold
//! distributed                   what ranks call together: threads of one process, or processes
//! ops                           matrix products, norms, activations, positions, losses, the optimiser's step
//! nn                            layers with parameters
//! longnet::LongNet              encoder, decoder, language model; decoding with a cache
//! models                        GigaPath's slide encoder, LongViT
//! weights, training             safetensors; steps, schedules, checkpoints
//! ```
//!
//! To start, see the examples of [`DilatedAttention`] and [`training::Trainer`]; the [`guide`] leads from a PyTorch checkpoint to a
//! desktop application. [`config`] defines the options, and [`reference`](mod@reference) the results, in f64. [`ContextOptions`] says how
//! to use an application's device, and [`Context::dry_run`] how to plan without one; [`pool`], when a buffer is used again;
//! [`Recorder`], how long leases are held.
//!
//! Tensors are row-major, (batch B, token N, head H, element D), of f32, f16 or bf16.
//!
//! # Features
//!
//! Attention, the pool, tensors and [`ops`] are always there. The rest can be left out:
//!
//! | feature | what it adds | on by default |
//! |---|---|---|
//! | `models` | [`nn`], [`longnet`], [`weights`], [`models`]; brings `dry-run` | yes |
//! | `training` | [`training`]; brings `models` | yes |
//! | `reference` | [`reference`](mod@reference) | yes |
//! | `dry-run` | [`Context::dry_run`], [`Context::warm_up`]; brings wgpu's noop backend | with `models` |
//! | `tracing` | events of the pool for the application's subscriber | no |
//! | `testing` | the insides, for the tests of this library alone; nothing there is stable | no |

// rustdoc asks of every type whether it is Sync, down to the depths of wgpu.
#![recursion_limit = "256"]
#![warn(missing_docs)]
#![deny(unsafe_code)]

// Floors, lowest first: a module imports only from modules above it in this list. tests/architecture.rs checks this.

// 1: basics

// element types
mod element;

// what things are called
mod label;

// figures and reports of a pool, as plain data
mod pool_figures;

// error types, and the data that errors carry
pub mod error;

// random numbers
mod random;

// files on a disk, read and written at given places
#[cfg(not(target_arch = "wasm32"))]
mod disk;

// replacing files as a whole
#[cfg(not(target_arch = "wasm32"))]
mod replacement;

// 2: what to compute, and on what kind of device

// options of attention
pub mod config;

// limits and traits of a device
pub mod device;

// 3: calls to the driver, and memory

// polling, and the loss of a device
mod watch;

// wgpu's errors as values
mod scope;

// all buffers
pub mod pool;

// whether a tensor was written
mod contents;

// arrays in buffers
mod tensor;

// 4: shaders, and how a call becomes dispatches

// one module for each kernel
mod kernels;

// dispatches, windows and bytes, as plain data
pub mod plan;

// 5: recordings, and how they run

// downloads
mod readback;

// commands of an application's own over leases
pub mod pool_encoder;

// commands and leases, submitted at once, in slices, or through an encoder
mod recorder;

// a device with all of that, and how to open one
mod context;

// 6: what you call

// groups of ranks
pub mod distributed;

// operations on matrices
pub mod ops;

// dilated attention
mod attention;

// attention over sequences that the device does not hold
#[cfg(not(target_arch = "wasm32"))]
pub mod out_of_core;

// layers with parameters
#[cfg(feature = "models")]
pub mod nn;

// encoder, decoder, language model
#[cfg(feature = "models")]
pub mod longnet;

// safetensors
#[cfg(feature = "models")]
pub mod weights;

// GigaPath, LongViT
#[cfg(feature = "models")]
pub mod models;

// steps, schedules, checkpoints
#[cfg(feature = "training")]
pub mod training;

// 7: on top

// the reference in f64
#[cfg(feature = "reference")]
pub mod reference;

// measuring which kernel is the fastest
#[cfg(not(target_arch = "wasm32"))]
pub mod tuning;

// the insides, for tests
#[cfg(feature = "testing")]
pub mod testing;

// figures in the documentation
#[cfg(test)]
mod documented_figures;

#[doc = include_str!("../docs/from_checkpoint_to_desktop_app.md")]
pub mod guide {}

#[cfg(not(target_arch = "wasm32"))]
pub use attention::BranchExchange;
pub use attention::{DilatedAttention, ForwardOutput, Gradients, UNCOVERED_LSE, softmax_lse};
pub use config::{
    AttentionShape, Branch, CallOptions, DilatedAttentionConfig, HeadOffsets, Heads, Mask,
    MixGradient, OutputRows, Padding,
};
pub use context::{AdapterChoice, Context, ContextOptions, WarmUp};
pub use device::{DType, DeviceCaps, Element};
pub use error::{Error, Result};
pub use kernels::remembered::{CacheFolder, KernelOptions};
pub use label::Label;
pub use plan::{BackwardPlan, ForwardPlan};
pub use pool::{Lease, PersistentBuffer, Pool, PoolOptions, PoolReport, PoolStats};
pub use pool_encoder::{PoolEncoder, Submission};
pub use readback::Download;
pub use recorder::{Progress, Recorder, SliceOptions, SlicedSubmission};
pub use tensor::{Tensor, TensorPart};
#[cfg(all(feature = "models", not(target_arch = "wasm32")))]
pub use weights::WeightWriter;
#[cfg(feature = "models")]
pub use weights::{WeightFile, WeightSource};

pub use half;
pub use wgpu;

// Makes doc tests of the Rust examples in the README and in docs. The guide is the module above.

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeDoctests;

#[cfg(doctest)]
#[doc = include_str!("../docs/devices.md")]
struct DevicesDoctests;

#[cfg(doctest)]
#[doc = include_str!("../docs/slices.md")]
struct SlicesDoctests;

#[cfg(doctest)]
#[doc = include_str!("../docs/training.md")]
struct TrainingDoctests;

#[cfg(doctest)]
#[doc = include_str!("../docs/gigapath.md")]
struct GigapathDoctests;

#[cfg(doctest)]
#[doc = include_str!("../docs/pool.md")]
struct PoolDoctests;

#[cfg(doctest)]
#[doc = include_str!("../docs/prediction.md")]
struct PredictionDoctests;
