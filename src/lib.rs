//! LongNet's segmented dilated attention as WGSL compute shaders on wgpu, over one pool of GPU buffers.

#![warn(missing_docs)]

// 1: what to compute, and how
pub mod config;
pub mod plan;

// 2: where it runs, and in which memory
pub mod context;
pub mod pool;
pub mod tensor;

// 3: shaders, recorded commands, results
pub mod kernel;
pub mod readback;
pub mod recorder;

// 4: what you call
pub mod attention;

// beside: errors, and the f64 oracle
pub mod error;
pub mod reference;

pub use attention::{DilatedAttention, ForwardOutput};
pub use config::{
    AttentionShape, Branch, DilatedAttentionConfig, HeadOffsets, Heads, Mask, MixGradient,
    OutputRows, Padding,
};
pub use context::{AdapterChoice, Context, ContextOptions};
pub use error::{Error, Result};
pub use plan::{DeviceFacts, ForwardPlan};
pub use pool::{Lease, Pool, PoolOptions, PoolReport, PoolStats};
pub use readback::Download;
pub use recorder::{Recorder, Submission};
pub use tensor::{DType, Element, Tensor};

pub use wgpu;
