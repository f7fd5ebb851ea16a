//! Weights in safetensors files: strict loading, atomic saving.
//!
//! ```text
//! WeightFile (opened, or bytes)  -> WeightSource (a part, renamed) -> load -> Parameters    f32, f16, bf16 -> f32
//! Parameters (sets, by prefix)   -> WeightWriter                   -> save -> file          f32 -> f32, f16, bf16
//! ```
//!
//! **What is checked when.** [`WeightFile::open`] and [`from_bytes`](WeightFile::from_bytes) check the whole header: all offsets
//! lie in the file, and all sizes agree with their shapes. [`WeightSource::load`] compares names, shapes and types with the model's
//! list, and reports *all* differences as one [`WeightsError::Mismatch`]. Only then does it lease anything. There is no lenient
//! loading, because a parameter that silently keeps its random initial values looks like a bad model, not like a wrong file.
//!
//! **Memory.** Opening reads the header. Loading reads the bytes of a tensor in pieces of 4 MiB, converts them to f32 and copies
//! them to staging memory, of which a submission has 16 MiB. So neither the host nor the pool holds the model twice. If the file is
//! written to meanwhile, loading fails with [`WeightsError::FileChanged`]. Saving reads about 64 MiB at a time; larger tensors are
//! read in pieces.
//!
//! **Names.** A file may have several sets of parameters under different prefixes, as training checkpoints do. [`WeightFile::part`]
//! selects one, and [`WeightFile::part_with`] finds one. If the names in a file have a prefix that those of the model do not have
//! (`module.`, `_orig_mod.`), the error tells the prefix. [`WeightSource::with_rename`] is for files with other names than the model,
//! and to leave tensors out *on purpose*: buffers that follow from the configuration, such as torchscale's xPos scale.
//!
//! ```no_run
//! use dilated_attention::longnet::{LongNet, LongNetConfig};
//! use dilated_attention::{Context, DilatedAttentionConfig, WeightFile, WeightWriter};
//!
//! let context = Context::new_blocking()?;
//! let attention = DilatedAttentionConfig::new(12, 64, &[2048, 4096, 8192], &[1, 2, 4])?.with_torchscale();
//! let mut config = LongNetConfig::encoder(attention, 12, 3072);
//! config.xpos_scale_base = Some(512.0);
//! let model = LongNet::new(&context, config)?;
//!
//! let file = WeightFile::open("torchscale.safetensors")?;
//! let weights = file
//!     .part("encoder.")
//!     .with_rename(|name| (!name.ends_with("self_attn.xpos.scale")).then(|| name.to_owned()))
//!     .load(&context, model.parameters())?;
//!
//! WeightWriter::new()
//!     .with_part("weights.", &weights)
//!     .with_metadata("made_by", "this example")
//!     .save(&context, "longnet.safetensors")?;
//! # Ok::<(), dilated_attention::Error>(())
//! ```

mod file;
mod foreign;
mod header;
mod load;
#[cfg(not(target_arch = "wasm32"))]
mod new_header;
#[cfg(not(target_arch = "wasm32"))]
mod save;
mod storage;
mod stored;
#[cfg(not(target_arch = "wasm32"))]
mod token_file;

pub use crate::error::{
    Duplicate, FoundPrefix, Misshapen, Mistyped, StoredType, WeightsError, WeightsMismatch,
};
pub use file::WeightFile;
pub use load::WeightSource;
#[cfg(not(target_arch = "wasm32"))]
pub use save::WeightWriter;
pub use stored::StoredTensor;

/// Prefix of the metadata keys that are reserved for this crate.
pub const OWN_METADATA: &str = "dilated_attention.";

#[cfg(test)]
mod tests;
