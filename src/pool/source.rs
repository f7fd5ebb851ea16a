//! Where buffers come from: the only place of the crate that calls `create_buffer`.

use std::fmt;

/// Why a buffer could not be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CreateError {
    /// No memory: the pool gives up what it has cached and tries again.
    OutOfMemory,
    /// Anything else, in the device's words; trying again would not help.
    Refused(String),
}

/// Makes buffers for a [`Pool`](super::Pool). Tests put sources of their own here, which fail on purpose.
pub trait BufferSource: Send + Sync + fmt::Debug {
    /// Makes a buffer of `bytes` (a multiple of 4, at most [`max_buffer_bytes`](Self::max_buffer_bytes)), mapped for
    /// writing when `mapped`.
    ///
    /// # Errors
    /// See [`CreateError`]. Nothing is left behind by a failed call.
    fn create(
        &self,
        label: &'static str,
        bytes: u64,
        usage: wgpu::BufferUsages,
        mapped: bool,
    ) -> Result<wgpu::Buffer, CreateError>;

    /// Lets the device finish callbacks and free what nothing uses any more; with `wait` until all submitted work is
    /// done (browsers ignore that).
    fn poll(&self, wait: bool);

    /// Largest buffer in bytes.
    fn max_buffer_bytes(&self) -> u64;
}

/// Buffers of a device.
#[derive(Clone, Debug)]
pub struct DeviceSource {
    device: wgpu::Device,
    max_buffer_bytes: u64,
}

impl DeviceSource {
    /// Buffers of `device`.
    pub fn new(device: wgpu::Device) -> Self {
        let max_buffer_bytes = device.limits().max_buffer_size;
        Self {
            device,
            max_buffer_bytes,
        }
    }
}

impl BufferSource for DeviceSource {
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that creates buffers"
    )]
    fn create(
        &self,
        label: &'static str,
        bytes: u64,
        usage: wgpu::BufferUsages,
        mapped: bool,
    ) -> Result<wgpu::Buffer, CreateError> {
        // Without scopes wgpu's default handler panics. Measured at under 0.1 us for a scope.
        let validation = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let out_of_memory = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let buffer = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(label),
            size: bytes,
            usage,
            mapped_at_creation: mapped,
        });
        if scope_error(out_of_memory).is_some() {
            return Err(CreateError::OutOfMemory);
        }
        match scope_error(validation) {
            Some(error) => Err(CreateError::Refused(error)),
            None => Ok(buffer),
        }
    }

    fn poll(&self, wait: bool) {
        let poll = if wait {
            wgpu::PollType::wait_indefinitely()
        } else {
            wgpu::PollType::Poll
        };
        // A lost device cannot be waited for; whoever needs its results learns of the loss from the mapping.
        let _ = self.device.poll(poll);
    }

    fn max_buffer_bytes(&self) -> u64 {
        self.max_buffer_bytes
    }
}

/// The error a scope caught, where the platform knows it at once. Browsers answer later: there the error surfaces when
/// the buffer is used.
pub(crate) fn scope_error(scope: wgpu::ErrorScopeGuard) -> Option<String> {
    let mut future = std::pin::pin!(scope.pop());
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match future.as_mut().poll(&mut context) {
        std::task::Poll::Ready(error) => error.map(|error| error.to_string()),
        std::task::Poll::Pending => None,
    }
}
