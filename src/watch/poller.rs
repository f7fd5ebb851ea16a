//! The thread that polls a device for whoever awaits it.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use super::DeviceWatch;

/// How long the thread waits for somebody to ask again: from one slice to the next of a run that an application advances once a
/// frame.
#[cfg(not(target_arch = "wasm32"))]
const LINGER: Duration = Duration::from_millis(100);

/// A thread that polls a device without blocking it, so that `.await` works on executors that know nothing of wgpu. (A
/// blocking poll would hold the lock that a submission from another thread needs.) There is one for a watch, while somebody asks
/// for it. Browsers poll by themselves.
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
    /// Who asks, and how often.
    periods: Vec<(u64, Duration)>,
    next_number: u64,
    /// Whether there is a thread.
    runs: bool,
}

impl Asked {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// As long as this lives, the device is polled; or until it is lost, which whoever waits is told.
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
    /// Has the device polled every `period`, or more often. Without a thread to be had, the application's own polling has to do.
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

/// Whether a thread was to be had.
#[cfg(not(target_arch = "wasm32"))]
fn start(watch: Weak<DeviceWatch>, asked: Arc<Asked>) -> bool {
    let run = move || {
        let _ended = Ended(&asked);
        while let Some(period) = next_period(&asked) {
            if watch.upgrade().is_none_or(|watch| watch.poll().is_err()) {
                asked.lock().runs = false;
                return;
            }
            // Until the time is over, or somebody else asks, perhaps for less.
            drop(asked.changed.wait_timeout(asked.lock(), period));
        }
    };
    let name = "dilated-attention poll".to_owned();
    std::thread::Builder::new().name(name).spawn(run).is_ok()
}

/// A thread that panics, in what a callback owned, is one less: the next who asks gets another.
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

/// None is needed.
#[cfg(target_arch = "wasm32")]
fn start(_: Weak<DeviceWatch>, _: Arc<Asked>) -> bool {
    false
}

/// The shortest time that somebody asks for. `None` when nobody asks any more: then there is no thread.
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
