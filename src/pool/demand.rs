//! What a program knows that it will need.

use crate::wgpu;

/// Buffers of one kind that a program knows it will need at one time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufferRequest {
    /// What for.
    pub label: &'static str,
    /// Bytes of each.
    pub bytes: u64,
    /// Usages of each.
    pub usage: wgpu::BufferUsages,
    /// How many.
    pub count: usize,
}

/// Something that knows which buffers it will need: a plan.
pub trait Demand {
    /// The buffers needed at one time.
    fn buffers(&self) -> Vec<BufferRequest>;
}

impl Demand for [BufferRequest] {
    fn buffers(&self) -> Vec<BufferRequest> {
        self.to_vec()
    }
}
