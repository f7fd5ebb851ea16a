//! Weights in safetensors files: loading strictly, saving atomically.
//!
//! ```text
//! WeightFile (opened, or bytes)  -> WeightSource (a part, renamed) -> load -> Parameters    f32, f16, bf16 -> f32
//! Parameters (sets, by prefix)   -> WeightWriter                   -> save -> file          f32 -> f32, f16, bf16
//! ```
//!
//! **What is checked when.** [`WeightFile::open`] and [`from_bytes`](WeightFile::from_bytes) check the header in full: a value
//! of that type holds no offset that leaves the file and no shape that differs from its bytes. [`WeightSource::load`] then
//! compares names, shapes and types with the model's list, and reports *all* differences as one
//! [`WeightsError::Mismatch`]. Only then does it lease anything. There is no lenient form: a
//! parameter that silently keeps its random start looks like a bad model, not like a wrong file.
//!
//! **Who copies.** Opening reads the header. Loading reads a tensor's bytes from their places in the file, a piece of 4 MiB at a time, widens
//! them to f32 and copies them to staging memory, of which a submission has 16 MiB; so neither the host nor the pool holds the
//! model twice. A file that is written to meanwhile is an error, [`WeightsError::FileChanged`]. Saving reads about 64 MiB at a time. A tensor larger than that goes in pieces.
//!
//! **Which names.** A file may hold several sets of parameters under prefixes, as checkpoints of training do;
//! [`WeightFile::part`] takes one, and [`WeightFile::part_with`] finds it; a file whose names have a prefix that the model's
//! have not (`module.`, `_orig_mod.`) is an error that names it. [`WeightSource::with_rename`] is for files whose names are not those of the model, and for
//! tensors to leave out *knowingly*: buffers that follow from the configuration, such as torchscale's scale of xPos.
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

pub use crate::error::{
    Duplicate, FoundPrefix, Misshapen, Mistyped, StoredType, WeightsError, WeightsMismatch,
};
pub use file::WeightFile;
pub use load::WeightSource;
#[cfg(not(target_arch = "wasm32"))]
pub use save::WeightWriter;
pub use stored::StoredTensor;

/// The beginning of the keys under which the crate itself writes into a file's metadata.
pub const OWN_METADATA: &str = "dilated_attention.";

#[cfg(test)]
mod tests;
