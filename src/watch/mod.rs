//! The one place that polls a device, and what is known of its loss.
//!
//! wgpu has no way to wait for a device, or to ask how far it is, that returns an error of the driver: `Device::poll` panics
//! (docs/reports/wgpu_device_poll_panics.md). It also keeps the callbacks that it was given, uncalled, because it looks for those
//! that are due only after the driver has answered. So everything this library asks of a device goes through its
//! [`DeviceWatch`]: panics are caught, the loss and its reason are kept, what waits is told, and a lost device is never polled
//! again.
//!
//! Callbacks for wgpu are registered here ([`DeviceWatch::expect`]) and run when wgpu calls them, when it drops them, or when
//! the device is lost, whichever is first. What they own, leases above all, comes back in each case.
//!
//! **Two steps.** wgpu tells a loss while it holds locks of its own, in which no buffer may be dropped and no waker called. So
//! [`lose`](DeviceWatch::lose) only takes note. [`tell`](DeviceWatch::tell) runs callbacks and empties pools; every call
//! that passes through here ends with it.
//!
//! There is one watch for a context and its pool. Two contexts that were made of one device each have theirs (wgpu's handles
//! cannot be compared: devices of two instances may be equal), and each finds the loss by itself.

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

/// How long a wait goes on without sleeping: as long as a short submission takes.
const BUSY_WAIT: Duration = Duration::from_micros(100);

/// The longest time between two looks at a device that is waited for.
const LONGEST_PAUSE: Duration = Duration::from_millis(1);

/// How long a queue's device may be busy before the queue is believed to be the device's.
const QUEUE_TRIAL: Duration = Duration::from_secs(1);

/// How long a callback may take that another thread's poll has found to be due.
const CALLBACK_GRACE: Duration = Duration::from_millis(20);

/// What became of something that wgpu was asked to call back for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It is done.
    Done,
    /// It was dropped before it was submitted.
    Dropped,
    /// The device is lost.
    Lost,
}

type Callback = Box<dyn FnOnce(Outcome) + Send>;

/// What has to be given up when a device is lost.
pub(crate) trait WhenLost: Send + Sync {
    /// The device is lost.
    fn device_lost(&self, reason: &str);
}

/// See the [module](self) documentation.
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

    /// Takes note that the device has taken a submission.
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

    /// [`Error::DeviceLost`] if the device is lost.
    ///
    /// # Errors
    /// That one.
    pub fn check(&self) -> Result<()> {
        self.lost()
            .map_or(Ok(()), |reason| Err(Error::DeviceLost { reason }))
    }

    /// [`Error::DeviceLost`] with the reason, or with `otherwise` where the device gave none.
    pub fn lost_error(&self, otherwise: &str) -> Error {
        Error::DeviceLost {
            reason: self.lost().unwrap_or_else(|| otherwise.to_owned()),
        }
    }

    /// Takes note that the device is lost; the first reason is kept. May be called from within wgpu.
    pub fn lose(&self, reason: &str) {
        let mut state = self.lock();
        state.lost.get_or_insert_with(|| given_reason(reason));
        self.is_lost.store(true, Ordering::Release);
    }

    /// If the device is lost, runs every callback that is still expected and empties the pools. Not to be called from within
    /// wgpu.
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

    /// Has `pool` told of the loss, once.
    pub fn tell_pool(&self, pool: Weak<dyn WhenLost>) {
        let mut state = self.lock();
        state.pools.retain(|pool| pool.strong_count() > 0);
        state.pools.push(pool);
        drop(state);
        self.tell();
    }

    /// Registers what to run when wgpu calls back. The ticket is for wgpu's callback to own.
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

    /// Runs `call`, which uses the device. A panic of wgpu in it loses the device.
    ///
    /// # Errors
    /// [`Error::DeviceLost`] when it panicked, and at once when the device was lost before.
    pub fn guard<T>(&self, call: impl FnOnce() -> T) -> Result<T> {
        self.check().inspect_err(|_| self.tell())?;
        let made = catch(call).map_err(|panic| {
            self.lose(&panic);
            self.lost_error(&panic)
        });
        self.tell();
        made
    }

    /// Lets finished work call back, without blocking.
    ///
    /// # Errors
    /// [`Error::DeviceLost`].
    pub fn poll(&self) -> Result<()> {
        self.poll_as(wgpu::PollType::Poll).map(drop)
    }

    /// Blocks until `is_done`, which is told whether the device was seen to be idle, or the device is lost (in browsers it polls
    /// once).
    ///
    /// Looks again and again, because wgpu's own waits do not suit: one without a timeout is not ended by a loss that another
    /// thread was told of, and one with a timeout panics where another thread's poll finds the work done between the timeout and
    /// the end of the call. Pauses are a sixteenth of the time waited so far, so that a wait is late by at most that.
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

    /// Blocks until all work that was submitted before is done, in the driver (not in browsers).
    ///
    /// # Errors
    /// [`Error::DeviceLost`].
    pub fn wait_in_driver(&self) -> Result<()> {
        self.poll_as(wgpu::PollType::wait_indefinitely()).map(drop)
    }

    /// Whether the driver has taken a submission, which is done by now.
    ///
    /// # Errors
    /// [`Error::DeviceLost`] when it has not: wgpu does not say so when it submits.
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

    /// Whether `queue` is the device's. wgpu compares neither; but once a device is idle, what its queue was asked to call back
    /// for has been called. Waits for what was submitted before, up to a second; a device that is busy for longer is believed,
    /// and so is one in a browser.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] when it is another device's, [`Error::DeviceLost`].
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
            // Another thread's poll may be about to call.
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

    /// The one place of the crate that polls.
    #[expect(clippy::disallowed_methods, reason = "the one place that polls")]
    fn poll_as(
        &self,
        how: wgpu::PollType,
    ) -> Result<std::result::Result<wgpu::PollStatus, wgpu::PollError>> {
        let polled = self.guard(|| self.device.poll(how))?;
        // wgpu may have told of the loss during this poll.
        self.check()?;
        Ok(polled)
    }
}

/// The reason of a loss; where none was given, that.
pub(crate) fn given_reason(reason: &str) -> String {
    match reason.trim() {
        "" => "no reason was given".to_owned(),
        reason => reason.to_owned(),
    }
}

/// Runs `call`.
///
/// # Errors
/// What it panicked with, on one line.
pub(crate) fn catch<T>(call: impl FnOnce() -> T) -> std::result::Result<T, String> {
    // What a panic of wgpu leaves half done is not used again: the device counts as lost.
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

/// A callback that wgpu was given.
pub(crate) struct Ticket {
    watch: Arc<DeviceWatch>,
    number: u64,
    outcome: Outcome,
}

impl Ticket {
    /// What was waited for is done.
    pub fn done(mut self) {
        self.outcome = Outcome::Done;
    }

    /// A buffer was mapped, or could not be: only a lost device refuses.
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

/// A queue that may be the last handle: wgpu waits for the device when that is dropped, and panics when it cannot.
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
            // wgpu destroys a semaphore of a queue twice whose first submission found no memory for another. So such a queue,
            // with its device, is left as it is.
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
