//! Plans: which dispatches compute an attention, with which windows, memory and work. Plans are plain data and need no device.

mod backward;
pub(crate) mod branch;
pub(crate) mod dispatch;
mod display;
mod forward;
pub(crate) mod needs;
mod planner;
#[cfg(feature = "models")]
mod step;
pub(crate) mod window;
mod workspace;

pub use backward::BackwardPlan;
#[cfg(not(target_arch = "wasm32"))]
pub(crate) use backward::plan_backward_of_share;
pub use forward::ForwardPlan;
#[cfg(not(target_arch = "wasm32"))]
pub(crate) use forward::{forward_flop, plan_block, plan_forward_of_share};
#[cfg(not(target_arch = "wasm32"))]
pub(crate) use needs::time_at;
#[cfg(all(feature = "models", not(target_arch = "wasm32")))]
pub(crate) use planner::segments_of;
#[cfg(not(target_arch = "wasm32"))]
pub(crate) use planner::{BlockKeys, BlockPlan, BlockSize, BlockWork, Tokens};
#[cfg(not(target_arch = "wasm32"))]
pub(crate) use planner::{KeyNeed, ShareNeeds, SharePlan};
#[cfg(feature = "models")]
pub(crate) use step::{StepLayout, plan_step};
pub(crate) use workspace::{PlannedBuffer, staging_bytes};

use crate::pool::{BufferRequest, Demand};

impl Demand for ForwardPlan {
    /// What a forward leases beside its inputs.
    fn buffers(&self) -> Vec<BufferRequest> {
        self.buffers.iter().map(PlannedBuffer::request).collect()
    }
}

impl Demand for BackwardPlan {
    /// What a backward leases beside its inputs.
    fn buffers(&self) -> Vec<BufferRequest> {
        self.buffers.iter().map(PlannedBuffer::request).collect()
    }
}

#[cfg(test)]
mod tests;
