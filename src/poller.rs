//! Polls a device for whoever awaits it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::watch::DeviceWatch;

/// A thread that polls a device without blocking it, so that `.await` works on executors that know nothing of wgpu. (A
/// blocking poll would hold the lock that a submission from another thread needs.) Browsers poll by themselves.
#[derive(Debug)]
pub(crate) struct Poller {
    stop: Arc<AtomicBool>,
}

impl Poller {
    /// Polls every `period` until this is dropped or the device is lost, which whoever waits is told. Without a thread to be
    /// had, the application's own polling has to do.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn start(watch: Arc<DeviceWatch>, period: Duration) -> Option<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let run = move || {
            while !stopped.load(Ordering::Relaxed) && watch.poll().is_ok() {
                std::thread::sleep(period);
            }
        };
        let name = "dilated-attention poll".to_owned();
        std::thread::Builder::new().name(name).spawn(run).ok()?;
        Some(Self { stop })
    }

    /// None is needed.
    #[cfg(target_arch = "wasm32")]
    pub fn start(_: Arc<DeviceWatch>, _: Duration) -> Option<Self> {
        None
    }
}

impl Drop for Poller {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
