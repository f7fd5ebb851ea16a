//! Error scopes around this library's own calls to wgpu: what the device reports becomes a value.
//!
//! Without a scope wgpu's default handler panics, and a borrowed device's own handler belongs to the application.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::Error;
use crate::watch::DeviceWatch;

/// What a device reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Caught {
    /// No memory.
    OutOfMemory,
    /// Any other error, in the device's words; or the message of a panic in wgpu.
    Refused(String),
    /// The device is lost, for this reason.
    Lost(String),
}

/// Runs `call` and returns its result, or what the device reported meanwhile. On a lost device `call` does not run. Browsers report
/// errors later: there they surface when the result is used.
pub(crate) fn catch<T>(watch: &DeviceWatch, call: impl FnOnce() -> T) -> Result<T, Caught> {
    let caught = match reported(watch, call) {
        Ok(made) => return Ok(made),
        Err(caught) => caught,
    };
    // On a lost device wgpu calls new objects invalid, so the report may hide a loss.
    if matches!(caught, Caught::Refused(_)) && !watch.is_lost() && refuses_buffers(watch) {
        watch.lose("wgpu refuses whatever is made on it");
        watch.tell();
    }
    Err(watch.lost().map_or(caught, Caught::Lost))
}

fn reported<T>(watch: &DeviceWatch, call: impl FnOnce() -> T) -> Result<T, Caught> {
    let device = watch.device();
    let scoped = || {
        let validation = device.push_error_scope(wgpu::ErrorFilter::Validation);
        let internal = device.push_error_scope(wgpu::ErrorFilter::Internal);
        let out_of_memory = device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        // Caught here, so that all scopes are popped, in the reverse order.
        let made = crate::watch::catch(call);
        let out_of_memory = popped(out_of_memory);
        let refused = popped(internal);
        let refused = refused.or(popped(validation));
        (made, out_of_memory, refused)
    };
    let lost = |error| match error {
        Error::DeviceLost { reason } => Caught::Lost(reason),
        other => Caught::Lost(other.to_string()),
    };
    let (made, out_of_memory, refused) = watch.guard(scoped).map_err(lost)?;
    if let Some(reason) = watch.lost() {
        return Err(Caught::Lost(reason));
    }
    match (made, out_of_memory, refused) {
        (_, Some(_), _) => Err(Caught::OutOfMemory),
        (Err(error), None, _) | (Ok(_), None, Some(error)) => Err(Caught::Refused(error)),
        (Ok(made), None, None) => Ok(made),
    }
}

fn popped(scope: wgpu::ErrorScopeGuard) -> Option<String> {
    let mut future = std::pin::pin!(scope.pop());
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match future.as_mut().poll(&mut context) {
        std::task::Poll::Ready(error) => error.map(|error| error.to_string()),
        std::task::Poll::Pending => None,
    }
}

/// Whether a device is lost that is not known to be. wgpu reports a loss only to the callback of the device's owner. But a new
/// buffer on a lost device is invalid, without an error, and mapping it fails at once.
#[expect(
    clippy::disallowed_methods,
    reason = "asks for a buffer to learn of the device, not to use it"
)]
fn refuses_buffers(watch: &DeviceWatch) -> bool {
    let create = || {
        watch.device().create_buffer(&wgpu::BufferDescriptor {
            label: Some("is the device lost"),
            size: 4,
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        })
    };
    let Ok(buffer) = reported(watch, create) else {
        return watch.is_lost();
    };
    let refused = Arc::new(AtomicBool::new(false));
    let answer = refused.clone();
    let map = || {
        buffer.map_async(wgpu::MapMode::Read, .., move |result| {
            answer.store(result.is_err(), Ordering::Relaxed);
        });
    };
    let mapped = reported(watch, map);
    mapped.is_err() || refused.load(Ordering::Relaxed)
}
