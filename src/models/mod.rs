//! Models of others, from their published weights.
//!
//! ```text
//! gigapath::SlideEncoder   prov-gigapath's slide encoder: features of tiles and where they lie -> embeddings of the slide
//! longvit::LongVit         torchscale's LongViT: pixels -> features, logits
//! ```
//! Both are a [`LongNet`](crate::longnet::LongNet) between an embedding and a pooling of their own. Parameters have the names
//! of the checkpoints, and loading is strict. Both run at once, in slices with progress, or recording by recording, and both
//! are planned without a device ([`ModelPlan`]). A result that is not finite is an error ([`NonFiniteResult`]).

mod finite;
pub mod gigapath;
pub mod longvit;
pub(crate) mod plan;
mod recordings;

pub use crate::error::{NonFiniteResult, Origin, Token};
pub use plan::ModelPlan;
