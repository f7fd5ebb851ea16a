//! Training of language models: AdamW, accumulation, schedules, checkpoints, and what a step will need.
//!
//! ```text
//! batches -> forward (keeps what the backward needs) -> loss -> backward (adds to gradients) -> AdamW -> weights
//! ```
//!
//! One [`step`](Trainer::step) is one recording, submitted at once: a batch that is refused, or memory that runs out, leaves
//! weights, moments and the number of steps as they were. Batches of a step are accumulated: their losses and gradients are
//! summed over labels and divided by the number of all labels at the end, so that any division of the same sequences into
//! batches is the same step, up to the rounding of sums.
//!
//! A step whose gradients are not finite changes nothing but the number of steps; waiting for it is
//! [`Error::NonFiniteStep`](crate::Error::NonFiniteStep), and training may go on.
//!
//! Everything random follows from the seed, the number of the step and the place in the model, and every sum has a fixed order:
//! a run that is [saved](Trainer::save) and [resumed](Trainer::resume) ends with the same bits as one that never stopped.
//!
//! [`Trainer::plan`] foretells the bytes of a step, without a device. Where they are too many, less is kept from the forward
//! ([`Recompute::Layers`](crate::longnet::Recompute::Layers)), or a step is cut into more batches.
//!
//! Models that are no language models train with the same parts:
//! [`LongNet::forward_saving`](crate::longnet::LongNet::forward_saving), a gradient of the features,
//! [`LongNet::backward`](crate::longnet::LongNet::backward) and an [`Optimizer`].

mod batch;
mod checkpoint;
mod optimizer;
mod plan;
mod schedule;
mod trainer;

pub use crate::ops::adamw::AdamWOptions;
pub use batch::Batch;
pub use optimizer::Optimizer;
pub use plan::TrainingPlan;
pub use schedule::LearningRate;
pub use trainer::{PendingStep, StepReport, Trainer, TrainingOptions};
