//! A context that only counts.
//!
//! Whoever wants to know what a training step will need could write a second program that adds up the sizes of all tensors,
//! and keep both alike for ever. Here the program itself is run, on a context whose recordings take leases from a pool and
//! count dispatches but do nothing else: no shader is compiled, no byte copied, and the pool's buffers are of four bytes,
//! whatever their leases say. What its pool measures is what the pool of a device will measure.

use std::sync::Arc;

use super::Context;
use crate::device::DeviceFacts;
use crate::kernels::Pipelines;
use crate::kernels::remembered::Tuner;
use crate::pool::{BufferSource, CreateError, Pool, PoolOptions};
use crate::recorder::{DryRun, Machine};
use crate::watch::{DeviceWatch, LastQueue};

impl Context {
    /// A context that plans for devices with `facts`, without one: recordings on it take leases and are counted, and do
    /// nothing. Its downloads never arrive.
    ///
    /// ```
    /// use dilated_attention::longnet::{LongNet, LongNetConfig};
    /// use dilated_attention::{Context, DeviceFacts, DilatedAttentionConfig};
    /// let planner = Context::planner(DeviceFacts::webgpu_defaults());
    /// let attention = DilatedAttentionConfig::new(8, 32, &[1024], &[1])?;
    /// let model = LongNet::new(&planner, LongNetConfig::encoder(attention, 4, 1024))?;
    /// let weights = model.initial_weights(&planner, 0)?;
    /// assert!(planner.pool().stats().requested_bytes.peak > 4 * model.parameters().num_elements());
    /// # drop(weights);
    /// # Ok::<(), dilated_attention::Error>(())
    /// ```
    pub fn planner(facts: DeviceFacts) -> Self {
        Self::planner_with(facts, Arc::default())
    }

    /// A planner for this context's device, which chooses the same kernels.
    pub(crate) fn own_planner(&self) -> Self {
        Self::planner_with(self.facts().clone(), self.machine.tuner.clone())
    }

    fn planner_with(facts: DeviceFacts, tuner: Arc<Tuner>) -> Self {
        let (device, queue) = wgpu::Device::noop(&wgpu::DeviceDescriptor::default());
        let watch = DeviceWatch::new(device.clone());
        let source = PlannerSource {
            device: device.clone(),
            max_buffer_bytes: facts.max_buffer_bytes,
        };
        Self {
            machine: Arc::new(Machine {
                info: device.adapter_info(),
                _last_queue: LastQueue::new(&queue, &watch),
                watch,
                facts,
                tried_facts: std::sync::OnceLock::new(),
                pace: std::sync::Mutex::default(),
                pool: Pool::with_source(source, PoolOptions::default()),
                pipelines: Pipelines::default(),
                pipelines_file: None,
                tuner,
                check_finite: false.into(),
                runner: &DryRun,
                queue,
            }),
        }
    }
}

/// Buffers that stand for larger ones and are never used.
#[derive(Debug)]
struct PlannerSource {
    device: wgpu::Device,
    max_buffer_bytes: u64,
}

impl BufferSource for PlannerSource {
    #[expect(
        clippy::disallowed_methods,
        reason = "a buffer source, like the pool's own"
    )]
    fn create(
        &self,
        label: &'static str,
        _: u64,
        usage: wgpu::BufferUsages,
    ) -> Result<wgpu::Buffer, CreateError> {
        Ok(self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(label),
            size: 4,
            usage,
            mapped_at_creation: false,
        }))
    }

    fn poll(&self, _: bool) {}

    fn max_buffer_bytes(&self) -> u64 {
        self.max_buffer_bytes
    }
}
