//! Buffers that a program will need.

use crate::label::Label;
use crate::wgpu;

/// Equal buffers that a program will need at the same time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BufferRequest {
    /// Label of the leases.
    pub label: Label,
    /// Bytes of each buffer.
    pub bytes: u64,
    /// Usages of each buffer.
    pub usage: wgpu::BufferUsages,
    /// Number of buffers.
    pub count: usize,
}

/// Something that knows which buffers it will need, such as a plan.
pub trait Demand {
    /// The buffers that are needed at the same time.
    fn buffers(&self) -> Vec<BufferRequest>;
}

impl Demand for [BufferRequest] {
    fn buffers(&self) -> Vec<BufferRequest> {
        self.to_vec()
    }
}
