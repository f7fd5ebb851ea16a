//! Error scopes around this library's own calls to wgpu: what the device reports becomes a value.
//!
//! Without a scope wgpu's default handler panics, and a borrowed device's own handler belongs to the application.

/// What a device reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Caught {
    /// No memory.
    OutOfMemory,
    /// Anything else, in the device's words.
    Refused(String),
}

/// Runs `call` and returns what it made, or what the device reported meanwhile. Browsers report later: there the error
/// surfaces when the result is used.
pub(crate) fn catch<T>(device: &wgpu::Device, call: impl FnOnce() -> T) -> Result<T, Caught> {
    let validation = device.push_error_scope(wgpu::ErrorFilter::Validation);
    let internal = device.push_error_scope(wgpu::ErrorFilter::Internal);
    let out_of_memory = device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
    let made = call();
    // Scopes are popped in the reverse order, all of them, whatever the first says.
    let out_of_memory = reported(out_of_memory);
    let refused = reported(internal);
    let refused = refused.or(reported(validation));
    match (out_of_memory, refused) {
        (Some(_), _) => Err(Caught::OutOfMemory),
        (None, Some(error)) => Err(Caught::Refused(error)),
        (None, None) => Ok(made),
    }
}

fn reported(scope: wgpu::ErrorScopeGuard) -> Option<String> {
    let mut future = std::pin::pin!(scope.pop());
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match future.as_mut().poll(&mut context) {
        std::task::Poll::Ready(error) => error.map(|error| error.to_string()),
        std::task::Poll::Pending => None,
    }
}
