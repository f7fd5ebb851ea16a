//! The only place that polls a device, and that knows whether it is lost.
//!
//! When the driver fails, wgpu's `Device::poll` panics instead of returning an error
//! (docs/reports/wgpu_device_poll_panics.md). wgpu then also never calls the callbacks it was given, because it looks for
//! those that are due only after the driver has answered. So this library uses a device only through its [`DeviceWatch`].
//! The watch catches panics, keeps the loss and its reason, ends everything that waits, and never polls a lost device again.
//!
//! Callbacks for wgpu are registered here ([`DeviceWatch::expect`]). They run when wgpu calls them, when wgpu drops them, or
//! when the device is lost, whichever comes first. In each case the leases they own come back.
//!
//! **Two steps.** wgpu reports a loss while it holds locks under which no buffer may be dropped and no waker called. So
//! [`lose`](DeviceWatch::lose) only notes the loss. [`tell`](DeviceWatch::tell) then runs callbacks and empties pools; every
//! call that goes through here ends with it.
//!
//! A context and its pool share one watch. Two contexts on the same device have separate watches, because wgpu's handles
//! cannot be compared (devices of two instances may be equal). Each watch finds the loss by itself.

mod poller;

use std::collections::HashMap;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Poll;
use std::time::Duration;

use web_time::Instant;

use crate::error::{Error, Result};

use poller::Poller;
pub(crate) use poller::Polling;

/// How long a wait polls without sleeping: about as long as a short submission takes.
const BUSY_WAIT: Duration = Duration::from_micros(100);

/// The longest pause between two polls of a device that is waited for.
const LONGEST_PAUSE: Duration = Duration::from_millis(1);

/// How long to wait for a busy device before its queue is believed to belong to it.
const QUEUE_TRIAL: Duration = Duration::from_secs(1);

/// How long to wait for a callback that another thread's poll is about to run.
const CALLBACK_GRACE: Duration = Duration::from_millis(20);

/// Why a callback runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The work is done.
    Done,
    /// The work was dropped before it was submitted.
    Dropped,
    /// The device is lost.
    Lost,
}

type Callback = Box<dyn FnOnce(Outcome) + Send>;

/// Something that has to be told when the device is lost.
pub(crate) trait WhenLost: Send + Sync {
    /// Called once, when the device is lost.
    fn device_lost(&self, reason: &str);
}

/// A device, with the loss and the callbacks that wait for it; see the [module](self) documentation.
pub(crate) struct DeviceWatch {
    device: wgpu::Device,
    is_lost: AtomicBool,
    has_submitted: AtomicBool,
    state: Mutex<State>,
    poller: Poller,
}

#[derive(Default)]
struct State {
    lost: Option<String>,
    expected: HashMap<u64, Callback>,
    next_number: u64,
    pools: Vec<Weak<dyn WhenLost>>,
}

impl DeviceWatch {
    pub fn new(device: wgpu::Device) -> Arc<Self> {
        Arc::new(Self {
            device,
            is_lost: AtomicBool::new(false),
            has_submitted: AtomicBool::new(false),
            state: Mutex::default(),
            poller: Poller::default(),
        })
    }

    pub fn device(&self) -> &wgpu::Device {
        &self.device
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the device is known to be lost.
    pub fn is_lost(&self) -> bool {
        self.is_lost.load(Ordering::Acquire)
    }

    /// Notes that the driver has accepted a submission.
    pub fn submitted(&self) {
        self.has_submitted.store(true, Ordering::Release);
    }

    /// Why the device is lost, if it is.
    pub fn lost(&self) -> Option<String> {
        if !self.is_lost() {
            return None;
        }
        self.lock().lost.clone()
    }

    /// Checks that the device is not lost.
    ///
    /// # Errors
    /// [`Error::DeviceLost`].
    pub fn check(&self) -> Result<()> {
        self.lost()
            .map_or(Ok(()), |reason| Err(Error::DeviceLost { reason }))
    }

    /// [`Error::DeviceLost`] with the reason of the loss, or with `otherwise` if there is none.
    pub fn lost_error(&self, otherwise: &str) -> Error {
        Error::DeviceLost {
            reason: self.lost().unwrap_or_else(|| otherwise.to_owned()),
        }
    }

    /// Notes that the device is lost and keeps the first reason. May be called from within wgpu.
    pub fn lose(&self, reason: &str) {
        let mut state = self.lock();
        state.lost.get_or_insert_with(|| given_reason(reason));
        self.is_lost.store(true, Ordering::Release);
    }

    /// If the device is lost, runs every callback that is still expected and empties the pools. Must not be called from
    /// within wgpu.
    pub fn tell(&self) {
        if !self.is_lost() {
            return;
        }
        let (reason, callbacks, pools) = {
            let mut state = self.lock();
            let reason = state.lost.clone().unwrap_or_default();
            let callbacks = std::mem::take(&mut state.expected);
            (reason, callbacks, std::mem::take(&mut state.pools))
        };
        for pool in pools.iter().filter_map(Weak::upgrade) {
            pool.device_lost(&reason);
        }
        for callback in callbacks.into_values() {
            callback(Outcome::Lost);
        }
    }

    /// Registers `pool`, which is told of the loss once.
    pub fn tell_pool(&self, pool: Weak<dyn WhenLost>) {
        let mut state = self.lock();
        state.pools.retain(|pool| pool.strong_count() > 0);
        state.pools.push(pool);
        drop(state);
        self.tell();
    }

    /// Registers a callback. wgpu's own callback has to own the returned ticket.
    pub fn expect(self: &Arc<Self>, callback: impl FnOnce(Outcome) + Send + 'static) -> Ticket {
        let mut state = self.lock();
        let number = state.next_number;
        state.next_number += 1;
        state.expected.insert(number, Box::new(callback));
        Ticket {
            watch: self.clone(),
            number,
            outcome: Outcome::Dropped,
        }
    }

    /// Runs `call`, which uses the device. If wgpu panics in it, the device counts as lost.
    ///
    /// # Errors
    /// [`Error::DeviceLost`] if it panicked, or if the device was lost before; then `call` does not run.
    pub fn guard<T>(&self, call: impl FnOnce() -> T) -> Result<T> {
        self.check().inspect_err(|_| self.tell())?;
        let made = catch(call).map_err(|panic| {
            self.lose(&panic);
            self.lost_error(&panic)
        });
        self.tell();
        made
    }

    /// Runs the callbacks of finished work, without blocking.
    ///
    /// # Errors
    /// [`Error::DeviceLost`].
    pub fn poll(&self) -> Result<()> {
        self.poll_as(wgpu::PollType::Poll).map(drop)
    }

    /// Blocks until `is_done` returns true or the device is lost. `is_done` is told whether the device was seen to be idle.
    /// In browsers it polls once and does not block.
    ///
    /// It polls again and again, because wgpu's own waits do not suit. A wait without a timeout does not end when another
    /// thread learns of a loss. A wait with a timeout panics if another thread's poll finds the work done between the
    /// timeout and the end of the call. Pauses are a sixteenth of the time waited so far, so a wait ends late by at most
    /// that.
    ///
    /// # Errors
    /// [`Error::DeviceLost`].
    pub fn wait_until(&self, mut is_done: impl FnMut(bool) -> bool) -> Result<()> {
        let begun = Instant::now();
        loop {
            let status = self.poll_as(wgpu::PollType::Poll)?;
            let is_idle = status.is_ok_and(|status| status.is_queue_empty());
            if is_done(is_idle) || cfg!(target_arch = "wasm32") {
                return Ok(());
            }
            let waited = begun.elapsed();
            match waited < BUSY_WAIT {
                true => std::thread::yield_now(),
                false => std::thread::sleep((waited / 16).min(LONGEST_PAUSE)),
            }
        }
    }

    /// Blocks in the driver until all work submitted before is done (not in browsers).
    ///
    /// # Errors
    /// [`Error::DeviceLost`].
    pub fn wait_in_driver(&self) -> Result<()> {
        self.poll_as(wgpu::PollType::wait_indefinitely()).map(drop)
    }

    /// Checks that the driver accepted a submission that is done by now.
    ///
    /// # Errors
    /// [`Error::DeviceLost`] if it did not, which wgpu does not report when it submits.
    pub fn check_taken(&self, submission: &wgpu::SubmissionIndex) -> Result<()> {
        let polled = self.poll_as(wgpu::PollType::Wait {
            submission_index: Some(submission.clone()),
            timeout: None,
        })?;
        if let Err(error) = polled {
            self.lose(&error.to_string());
            self.tell();
        }
        self.check()
    }

    /// Checks that `queue` belongs to the device. wgpu cannot compare the two. But once a device is idle, all work-done
    /// callbacks of its own queue have run. The call waits up to a second for earlier submissions. If the device stays busy
    /// for longer, or in a browser, the queue is believed.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] if it belongs to another device; [`Error::DeviceLost`].
    pub fn check_queue(&self, queue: &wgpu::Queue) -> Result<()> {
        if cfg!(target_arch = "wasm32") {
            return Ok(());
        }
        let called = Arc::new(AtomicBool::new(false));
        let calls = called.clone();
        self.guard(|| queue.on_submitted_work_done(move || calls.store(true, Ordering::Release)))?;
        let begun = Instant::now();
        let mut idle_since = None;
        self.wait_until(|is_idle| {
            if is_idle {
                idle_since.get_or_insert_with(Instant::now);
            }
            // Another thread's poll may be about to run the callback.
            let idle_for = idle_since.map_or(Duration::ZERO, |since| since.elapsed());
            called.load(Ordering::Acquire)
                || idle_for > CALLBACK_GRACE
                || begun.elapsed() > QUEUE_TRIAL
        })?;
        if called.load(Ordering::Acquire) || idle_since.is_none() {
            return Ok(());
        }
        Err(Error::InvalidConfig {
            what: "the queue",
            given: "one of another device".to_owned(),
            need: "the device's own: request_device returns both",
        })
    }

    /// The only place in the crate that polls.
    #[expect(clippy::disallowed_methods, reason = "the one place that polls")]
    fn poll_as(
        &self,
        how: wgpu::PollType,
    ) -> Result<std::result::Result<wgpu::PollStatus, wgpu::PollError>> {
        let polled = self.guard(|| self.device.poll(how))?;
        // wgpu may have reported the loss during this poll.
        self.check()?;
        Ok(polled)
    }
}

/// The reason of a loss, or a text that says that none was given.
pub(crate) fn given_reason(reason: &str) -> String {
    match reason.trim() {
        "" => "no reason was given".to_owned(),
        reason => reason.to_owned(),
    }
}

/// Runs `call` and catches a panic in it.
///
/// # Errors
/// The message of its panic, on one line.
pub(crate) fn catch<T>(call: impl FnOnce() -> T) -> std::result::Result<T, String> {
    // State that a panic of wgpu leaves half done is not used again, because the device counts as lost.
    catch_unwind(AssertUnwindSafe(call)).map_err(|panic| {
        let message = match panic.downcast_ref::<String>() {
            Some(message) => message.as_str(),
            None => panic
                .downcast_ref::<&str>()
                .copied()
                .unwrap_or("no message"),
        };
        let words: Vec<&str> = message.split_whitespace().collect();
        format!("wgpu panicked: {}", words.join(" "))
    })
}

/// As [`catch`], of a future.
///
/// # Errors
/// As [`catch`].
pub(crate) async fn catch_async<T>(
    future: impl Future<Output = T>,
) -> std::result::Result<T, String> {
    let mut future = std::pin::pin!(future);
    poll_fn(|context| match catch(|| future.as_mut().poll(context)) {
        Ok(polled) => polled.map(Ok),
        Err(panic) => Poll::Ready(Err(panic)),
    })
    .await
}

/// The ticket of a registered callback, owned by the callback that wgpu was given.
pub(crate) struct Ticket {
    watch: Arc<DeviceWatch>,
    number: u64,
    outcome: Outcome,
}

impl Ticket {
    /// Runs the callback: the awaited work is done.
    pub fn done(mut self) {
        self.outcome = Outcome::Done;
    }

    /// A buffer was mapped, or could not be. Only a lost device refuses.
    pub fn mapped(mut self, result: std::result::Result<(), wgpu::BufferAsyncError>) {
        self.outcome = match result {
            Ok(()) => Outcome::Done,
            Err(_) => {
                self.watch.lose("a buffer could not be mapped");
                Outcome::Lost
            }
        };
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let callback = self.watch.lock().expected.remove(&self.number);
        if let Some(callback) = callback {
            callback(self.outcome);
        }
    }
}

/// A queue that may be the last handle. When the last handle is dropped, wgpu waits for the device, and panics if it cannot.
#[derive(Debug)]
pub(crate) struct LastQueue {
    queue: Option<wgpu::Queue>,
    watch: Arc<DeviceWatch>,
}

impl LastQueue {
    pub fn new(queue: &wgpu::Queue, watch: &Arc<DeviceWatch>) -> Self {
        Self {
            queue: Some(queue.clone()),
            watch: watch.clone(),
        }
    }
}

impl Drop for LastQueue {
    fn drop(&mut self) {
        let queue = self.queue.take();
        if self.watch.is_lost() && !self.watch.has_submitted.load(Ordering::Acquire) {
            // If a queue's first submission finds no memory for a second semaphore, wgpu later destroys the first one twice.
            // So such a queue is leaked, with its device.
            std::mem::forget(queue);
            return;
        }
        let _ = catch(|| drop(queue));
    }
}

impl std::fmt::Debug for DeviceWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeviceWatch")
            .field("device", &self.device)
            .field("lost", &self.lost())
            .finish_non_exhaustive()
    }
}
