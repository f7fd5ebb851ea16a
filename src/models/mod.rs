//! Published models, which load their original weights.
//!
//! ```text
//! gigapath::SlideEncoder   prov-gigapath's slide encoder: features and positions of tiles -> embeddings of the slide
//! longvit::LongVit         torchscale's LongViT: pixels -> features, logits
//! ```
//! Both consist of an embedding, a [`LongNet`](crate::longnet::LongNet) and a readout. Both are used in the same way, by the
//! methods of [`StagedModel`]:
//!
//! ```no_run
//! use dilated_attention::models::StagedModel;
//! use dilated_attention::models::gigapath::{Slide, SlideEncoder, SlideEncoderConfig, SlideOutputs};
//! use dilated_attention::{Context, Progress, SliceOptions, WeightFile};
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
//! Parameters have the names of the checkpoint, and loading is strict. A [`ModelRun`] is submitted in slices with progress, at
//! once, or recording by recording. A result that is not finite is an error ([`NonFiniteResult`]).
//!
//! # To add a model
//!
//! All models share [`ModelRun`] (the order of recordings, states, progress, slices, the check for finite results, retrying after
//! an error), [`ModelPlan`], loading and warming up. A new model is a folder with
//!
//! 1. its options, and a type with its parameters and a `LongNet` that implements `StagedModel`: `new` declares the parameters
//!    under the names of the checkpoint, `stages` checks an input, `with_zeros` makes an input of a given size, for plans;
//! 2. the type that `stages` returns, which implements `Stages` (staged.rs): `embed` records how a part of the input becomes the
//!    first state, `read_out` records the last stage, `output` makes the results from what was read back, `results` lists them for
//!    the check. `layer`, `read_state` and `check_values` have defaults.
//!
//! `longvit/stages.rs` is the shorter example. Half precision needs no more than that `new` gives the encoder its type of
//! activations and `embed` makes the state with that type.

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
