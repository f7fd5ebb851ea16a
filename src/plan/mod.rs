//! How to compute it: dispatches, windows, memory and work, as plain data that needs no device.

pub mod branch;
mod display;
mod facts;
mod forward;
mod planner;
mod window;
mod workspace;

pub use facts::{DeviceFacts, Processor};
pub use forward::{ForwardDispatch, ForwardPlan, PlannedBuffer, Range, UNCOVERED_LSE};
pub(crate) use window::word_windows;
pub use window::{ByteRange, RowLayout, TokenWindow};
pub use workspace::BufferRole;
pub(crate) use workspace::staging_bytes;
