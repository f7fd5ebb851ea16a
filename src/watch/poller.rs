//! The thread that polls a device while something awaits it.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use super::DeviceWatch;

/// How long the thread stays without a request. It covers the time from one slice to the next where an application advances
/// a run once a frame.
#[cfg(not(target_arch = "wasm32"))]
const LINGER: Duration = Duration::from_millis(100);

/// A thread that polls a device without blocking it, so that `.await` works on executors that know nothing of wgpu. A
/// blocking poll would hold the lock that another thread needs to submit. Each watch has at most one such thread, while
/// there are requests. Browsers poll by themselves.
#[derive(Debug, Default)]
pub(super) struct Poller {
    asked: Arc<Asked>,
}

#[derive(Debug, Default)]
struct Asked {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The requests: number and period of each.
    periods: Vec<(u64, Duration)>,
    next_number: u64,
    /// Whether the thread runs.
    runs: bool,
}

impl Asked {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request for polling. The device is polled until this is dropped or the device is lost.
#[derive(Debug)]
pub(crate) struct Polling {
    asked: Arc<Asked>,
    number: u64,
}

impl Drop for Polling {
    fn drop(&mut self) {
        let mut state = self.asked.lock();
        state.periods.retain(|(number, _)| *number != self.number);
    }
}

impl DeviceWatch {
    /// Requests that the device is polled every `period`, or more often. If no thread can be started, only the application's
    /// own polling remains.
    pub fn keep_polling(self: &Arc<Self>, period: Duration) -> Polling {
        let asked = &self.poller.asked;
        let mut state = asked.lock();
        let number = state.next_number;
        state.next_number += 1;
        state.periods.push((number, period));
        if !state.runs {
            state.runs = start(Arc::downgrade(self), asked.clone());
        }
        asked.changed.notify_all();
        Polling {
            asked: asked.clone(),
            number,
        }
    }
}

/// Starts the thread. Returns whether that succeeded.
#[cfg(not(target_arch = "wasm32"))]
fn start(watch: Weak<DeviceWatch>, asked: Arc<Asked>) -> bool {
    let run = move || {
        let _ended = Ended(&asked);
        while let Some(period) = next_period(&asked) {
            if watch.upgrade().is_none_or(|watch| watch.poll().is_err()) {
                asked.lock().runs = false;
                return;
            }
            // Sleeps until the period is over, or until another request comes, perhaps with a shorter one.
            drop(asked.changed.wait_timeout(asked.lock(), period));
        }
    };
    let name = "dilated-attention poll".to_owned();
    std::thread::Builder::new().name(name).spawn(run).is_ok()
}

/// If the thread panics while it drops what a callback owned, the next request starts another.
#[cfg(not(target_arch = "wasm32"))]
struct Ended<'a>(&'a Asked);

#[cfg(not(target_arch = "wasm32"))]
impl Drop for Ended<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.lock().runs = false;
        }
    }
}

/// No thread is needed.
#[cfg(target_arch = "wasm32")]
fn start(_: Weak<DeviceWatch>, _: Arc<Asked>) -> bool {
    false
}

/// The shortest requested period, or `None` without requests. The thread then ends.
#[cfg(not(target_arch = "wasm32"))]
fn next_period(asked: &Asked) -> Option<Duration> {
    let mut state = asked.lock();
    if state.periods.is_empty() {
        let waited = asked.changed.wait_timeout(state, LINGER);
        state = waited.unwrap_or_else(PoisonError::into_inner).0;
    }
    let shortest = state.periods.iter().map(|(_, period)| *period).min();
    state.runs = shortest.is_some();
    shortest
}
