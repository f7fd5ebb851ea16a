//! How to compute it: dispatches, windows, memory and work, as plain data that needs no device.

pub mod branch;
mod facts;
mod forward;
mod window;

pub use facts::{DeviceFacts, Processor};
pub use forward::{ForwardDispatch, ForwardPlan, PlannedBuffer, Range, UNCOVERED_LSE};
pub use window::{RowLayout, TokenWindow};
