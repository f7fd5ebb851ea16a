//! Training of language models: AdamW, accumulation, schedules, validation, checkpoints, and plans of a step's memory and time.
//!
//! ```text
//! batches -> forward (keeps what the backward needs) -> loss -> backward (adds to gradients) -> AdamW -> weights
//! ```
//!
//! A step is one recording. [`Trainer::step`] submits it at once; [`Trainer::record_step`] hands it out, to be submitted in slices
//! with progress. A step that is refused, dropped or cancelled, or for which memory runs out, leaves weights, means and the
//! number of steps as they were: in slices, too, the weights change in the last slice, all at once.
//!
//! Batches of a step are accumulated: their losses and gradients are summed over labels and divided by the number of all labels
//! at the end, so that any division of the same sequences into batches is the same step, up to the rounding of sums.
//!
//! The learning rate, the settings of AdamW (clipping among them) and what the backward recomputes may change between steps:
//! [`Trainer::set_options`]. A schedule counts steps from the start of the training; it may be a
//! [function](LearningRate::from_fn).
//!
//! A step whose gradients are not finite changes nothing but the number of steps; waiting for it is
//! [`Error::NonFiniteStep`](crate::Error::NonFiniteStep), and training may go on.
//!
//! Everything random follows from the seed, the number of the step and the place in the model, and every sum has a fixed order:
//! a run that is [saved](Trainer::save) and [resumed](Trainer::resume) ends with the same bits as one that never stopped.
//! Checkpoints hold weights, means and the number of steps; model and options are given again.
//!
//! [`Trainer::evaluate_blocking`] and [`Trainer::evaluate_in_slices`] compute the loss on other data, without a step;
//! [`LongNet::generate`](crate::longnet::LongNet::generate) generates text.
//!
//! [`Trainer::plan`] computes the memory and the floating point operations of a step without a device;
//! [`Trainer::plan_for`] adds the expected time. A step that needs too much memory can keep less from the forward
//! ([`Recompute::Layers`](crate::longnet::Recompute::Layers)), or be cut into more batches.
//!
//! Models other than language models train with the same parts:
//! [`LongNet::forward_saving`](crate::longnet::LongNet::forward_saving), a gradient of the features,
//! [`LongNet::backward`](crate::longnet::LongNet::backward) and an [`Optimizer`].

mod batch;
mod checkpoint;
mod evaluation;
mod optimizer;
mod plan;
#[cfg(not(target_arch = "wasm32"))]
mod ranks;
mod schedule;
mod step;
mod trainer;

pub use crate::ops::adamw::{AdamWOptions, AdamWStep};
pub use batch::Batch;
pub use evaluation::Evaluation;
pub use optimizer::Optimizer;
pub use plan::TrainingPlan;
pub use schedule::{LearningRate, RateFunction};
pub use step::{PendingStep, StepReport, TrainingStep};
pub use trainer::{Trainer, TrainingOptions};
