//! Plans: which dispatches compute an attention, with which windows, memory and work. Plans are plain data and need no device.

mod backward;
pub mod branch;
mod dispatch;
mod display;
mod forward;
pub(crate) mod needs;
mod planner;
mod step;
mod window;
mod workspace;

pub use backward::BackwardPlan;
pub use dispatch::{AttentionDispatch, Range};
pub use forward::ForwardPlan;
pub(crate) use step::{StepLayout, plan_step, rows_of};
pub use window::{RowLayout, TokenWindow};
pub(crate) use workspace::staging_bytes;
pub use workspace::{BufferRole, PlannedBuffer};

#[cfg(test)]
mod tests;
