//! How to compute it: dispatches, windows, memory and work, as plain data that needs no device.

mod backward;
pub mod branch;
mod cooperative;
mod dispatch;
mod display;
mod facts;
mod forward;
mod planner;
mod step;
mod window;
mod workspace;

pub use backward::BackwardPlan;
pub use cooperative::{CooperativeMatrix, NoCooperativeMatrix};
pub use dispatch::{AttentionDispatch, Pass, Range};
pub use facts::{DeviceFacts, Processor};
pub use forward::ForwardPlan;
pub(crate) use step::{StepLayout, plan_step, rows_of};
pub(crate) use window::word_windows;
pub use window::{ByteRange, RowLayout, TokenWindow};
pub(crate) use workspace::staging_bytes;
pub use workspace::{BufferRole, PlannedBuffer};
