//! Models of others, from their published weights.
//!
//! ```text
//! gigapath::SlideEncoder   prov-gigapath's slide encoder: features of tiles and where they lie -> embeddings of the slide
//! longvit::LongVit         torchscale's LongViT: pixels -> features, logits
//! ```
//! Both are a [`LongNet`](crate::longnet::LongNet) between an embedding and a readout of their own, and are used alike, by the
//! methods of [`StagedModel`]:
//!
//! ```no_run
//! use dilated_attention::models::StagedModel;
//! use dilated_attention::models::gigapath::{Slide, SlideEncoder, SlideEncoderConfig, SlideOutputs};
//! use dilated_attention::recorder::{Progress, SliceOptions};
//! use dilated_attention::{Context, WeightFile};
//! # async fn encode() -> dilated_attention::Result<()> {
//! let context = Context::new().await?;
//! let (config, outputs) = (SlideEncoderConfig::base(), SlideOutputs::default());
//! let plan = SlideEncoder::plan_for(&context, &config, &[3], &outputs)?; // memory and time, before anything runs
//! plan.check_budget(1 << 30)?;
//! let encoder = SlideEncoder::new(&context, config)?;
//! let weights = encoder.load(&context, &WeightFile::open("slide.safetensors")?)?;
//! let slides = [Slide { features: &vec![0.1; 3 * 1536], coords: &[[0.0, 0.0], [256.0, 0.0], [0.0, 256.0]] }];
//! let run = encoder.run(&context, &weights, &slides, &outputs)?;
//! let show = |progress: Progress| println!("{:.0} %", 100.0 * progress.fraction());
//! let output = run.in_slices(SliceOptions::default(), show).await?;
//! assert_eq!(output.pool.len(), 768);
//! # Ok(())
//! # }
//! ```
//! Parameters have the names of the checkpoints, and loading is strict. A [`ModelRun`] goes in slices with progress, at once, or
//! recording by recording. A result that is not finite is an error ([`NonFiniteResult`]).
//!
//! # To add a model
//!
//! What is written once: [`ModelRun`] (recordings in their order, states, progress, slices, results that are not finite, retrying
//! after an error), [`ModelPlan`], loading, warming up. A model is a folder with
//!
//! 1. its options, and a type with its parameters and a `LongNet`, for which `StagedModel` is implemented: `new` declares the
//!    parameters under the names of the checkpoint, `stages` checks an input, `with_zeros` makes one of a size, for plans;
//! 2. the type that `stages` returns, for which `Stages` (staged.rs) is implemented: `embed` records a part of the input into the
//!    first state, `read_out` the end, `output` makes results of what was read back, `results` lists them for the check.
//!    What else differs has a default: `layer`, `read_state`, `check_values`.
//!
//! `longvit/stages.rs` is the shorter one to start from. Half precision comes by itself where `new` gives the encoder its
//! activations and `embed` makes the state of that type.

mod activations;
mod finite;
pub mod gigapath;
pub mod longvit;
mod plan;
mod run;
mod staged;

pub use crate::error::{NonFiniteResult, Origin, Token};
pub use plan::ModelPlan;
pub use run::ModelRun;
pub use staged::StagedModel;
