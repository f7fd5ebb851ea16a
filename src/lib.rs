//! LongNet's segmented dilated attention on wgpu.

pub mod config;
pub mod error;
pub mod plan;
pub mod reference;

pub use config::{
    AttentionShape, Branch, DilatedAttentionConfig, HeadOffsets, Heads, Mask, MixGradient,
    OutputRows, Padding,
};
pub use error::{Error, Result};
