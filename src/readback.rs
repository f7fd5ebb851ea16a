//! Results on their way to the host.
//!
//! A [`Download`] is made by [`Recorder::download`](crate::Recorder::download), filled when its recording was submitted and the
//! device is done, and read by [`wait`](Download::wait) (blocking) or `.await` (any executor). Its buffer goes back to the
//! pool when both the download and the device have let go of it.

use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context as TaskContext, Poll, Waker};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::poller::Poller;
use crate::pool::Lease;
use crate::scope;
use crate::tensor::Element;
use crate::watch::{DeviceWatch, Outcome};

/// How long a callback may take that another thread's poll has found to be due.
const CALLBACK_GRACE: Duration = Duration::from_millis(20);

/// How often an idle device may fail to call back before it counts as lost: 0.8 seconds of grace.
const IDLE_ROUNDS: u32 = 40;

/// How often a device is polled for a download that is awaited.
const POLL_PERIOD: Duration = Duration::from_millis(1);

/// Where the bytes of a download are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// In a recording that was not submitted yet.
    Recorded,
    /// In an encoder of the application's; whether that was submitted, only the application knows.
    Encoded,
    /// On the way: the device will call back.
    Submitted,
    /// Mapped.
    Ready,
    /// They will never come: this was dropped unsubmitted.
    Abandoned(&'static str),
    /// They will never come: the device is lost.
    Lost,
}

#[derive(Debug)]
struct Progress {
    stage: Stage,
    waker: Option<Waker>,
}

/// The buffer of a download, shared by the download, its recording and the device's callback.
#[derive(Debug)]
pub(crate) struct Readback {
    lease: Lease,
    watch: Arc<DeviceWatch>,
    progress: Mutex<Progress>,
    /// Signalled when the stage changes.
    changed: Condvar,
}

impl Readback {
    pub fn new(lease: Lease, watch: Arc<DeviceWatch>) -> Arc<Self> {
        Arc::new(Self {
            lease,
            watch,
            progress: Mutex::new(Progress {
                stage: Stage::Recorded,
                waker: None,
            }),
            changed: Condvar::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, stage: Stage) {
        let waker = {
            let mut progress = self.lock();
            progress.stage = stage;
            progress.waker.take()
        };
        self.changed.notify_all();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The encoder that the download is in was submitted by its own recording.
    pub fn submitted(&self) {
        let mut progress = self.lock();
        if progress.stage == Stage::Encoded {
            progress.stage = Stage::Submitted;
        }
    }

    /// Fails the download if its recording goes away unsubmitted.
    pub fn abandon(&self) {
        if self.lock().stage == Stage::Recorded {
            self.set(Stage::Abandoned("its recording was dropped unsubmitted"));
        }
    }

    /// wgpu has called back, or never will.
    fn arrived(&self, outcome: Outcome) {
        self.set(match outcome {
            Outcome::Done => Stage::Ready,
            Outcome::Dropped => Stage::Abandoned("its encoder was dropped unsubmitted"),
            Outcome::Lost => Stage::Lost,
        });
    }

    /// Asks `encoder` to map the buffer when its commands are done.
    pub fn map_on_submit(self: &Arc<Self>, encoder: &wgpu::CommandEncoder) {
        self.set(Stage::Encoded);
        let readback = self.clone();
        let ticket = self.watch.expect(move |outcome| readback.arrived(outcome));
        encoder.map_buffer_on_submit(
            self.lease.buffer(),
            wgpu::MapMode::Read,
            0..self.lease.requested_bytes(),
            move |result| ticket.mapped(result),
        );
    }
}

impl Drop for Readback {
    fn drop(&mut self) {
        // Buffers wait unmapped in the pool. One of a lost device has been destroyed, which wgpu reports.
        if self.lock().stage == Stage::Ready {
            let _ = scope::catch(&self.watch, || self.lease.buffer().unmap());
        }
    }
}

/// A tensor on its way to the host: [`wait`](Self::wait) blocks for its elements, row-major; as a future it resolves to the
/// same, with the same errors, and to [`Error::NotSubmitted`] at once when polled before its recording was submitted.
#[derive(Debug)]
#[must_use = "nothing is read from a download that nobody waits for"]
pub struct Download<T: Element> {
    readback: Arc<Readback>,
    num_elements: usize,
    poller: Option<Poller>,
    element: PhantomData<T>,
}

impl<T: Element> Download<T> {
    pub(crate) fn new(readback: Arc<Readback>, num_elements: usize) -> Self {
        Self {
            readback,
            num_elements,
            poller: None,
            element: PhantomData,
        }
    }

    /// Blocks until the elements are here, and until all else that was submitted to the device is done. May be called
    /// again; each call copies the elements anew. In browsers, which cannot block, use `.await`.
    ///
    /// # Errors
    /// [`Error::NotSubmitted`] while the recording (or the embedder's encoder) was not submitted: submit it and wait
    /// again. [`Error::DownloadAbandoned`] and [`Error::DeviceLost`] when the elements will never come.
    pub fn wait(&self) -> Result<Vec<T>> {
        for _ in 0..IDLE_ROUNDS {
            if let Some(result) = self.result() {
                return result;
            }
            if let Err(lost) = self.readback.watch.wait() {
                return self.result().unwrap_or(Err(lost));
            }
            // Another thread's poll may be the one that is about to call back.
            let progress = self.readback.lock();
            let before = progress.stage;
            if matches!(before, Stage::Recorded | Stage::Encoded | Stage::Submitted) {
                let waited = self.readback.changed.wait_timeout(progress, CALLBACK_GRACE);
                let (progress, _) = waited.unwrap_or_else(PoisonError::into_inner);
                if progress.stage == before && before != Stage::Submitted {
                    drop(progress);
                    return Err(self.not_submitted());
                }
            }
        }
        let never = "it is idle, but a buffer was never mapped";
        Err(self.readback.watch.lost_error(never))
    }

    /// Whether [`wait`](Self::wait) would return at once. Never blocks; something has to poll the device meanwhile
    /// ([`Context::poll`](crate::Context::poll), or any submission).
    pub fn is_ready(&self) -> bool {
        let stage = self.readback.lock().stage;
        self.readback.watch.is_lost()
            || !matches!(stage, Stage::Recorded | Stage::Encoded | Stage::Submitted)
    }

    fn not_submitted(&self) -> Error {
        Error::NotSubmitted {
            label: self.readback.lease.label(),
        }
    }

    /// The elements if they are here, an error if they will never be.
    fn result(&self) -> Option<Result<Vec<T>>> {
        let stage = self.readback.lock().stage;
        match stage {
            Stage::Recorded | Stage::Encoded | Stage::Submitted => None,
            // A recording that a lost device refused is dropped, too.
            Stage::Abandoned(reason) if self.readback.watch.is_lost() => {
                Some(Err(self.readback.watch.lost_error(reason)))
            }
            Stage::Abandoned(reason) => Some(Err(Error::DownloadAbandoned {
                label: self.readback.lease.label(),
                reason,
            })),
            Stage::Lost => Some(Err(self
                .readback
                .watch
                .lost_error("a buffer could not be mapped"))),
            Stage::Ready => Some(self.read()),
        }
    }

    fn read(&self) -> Result<Vec<T>> {
        let mut elements = vec![T::zeroed(); self.num_elements];
        let Readback { lease, watch, .. } = &*self.readback;
        let lost = |error: &dyn std::fmt::Display| watch.lost_error(&error.to_string());
        let range = 0..lease.requested_bytes();
        let view = crate::watch::catch(|| lease.buffer().get_mapped_range(range))
            .map_err(|panic| lost(&panic))?
            .map_err(|error| lost(&error))?;
        let bytes = bytemuck::cast_slice_mut::<T, u8>(&mut elements);
        bytes.copy_from_slice(&view[..bytes.len()]);
        Ok(elements)
    }
}

impl<T: Element> Future for Download<T> {
    type Output = Result<Vec<T>>;

    fn poll(mut self: Pin<&mut Self>, context: &mut TaskContext<'_>) -> Poll<Self::Output> {
        if let Err(lost) = self.readback.watch.poll() {
            return Poll::Ready(self.result().unwrap_or(Err(lost)));
        }
        {
            let mut progress = self.readback.lock();
            match progress.stage {
                Stage::Recorded => {
                    drop(progress);
                    return Poll::Ready(Err(self.not_submitted()));
                }
                Stage::Encoded | Stage::Submitted => {
                    progress.waker = Some(context.waker().clone());
                }
                Stage::Ready | Stage::Abandoned(_) | Stage::Lost => {}
            }
        }
        if let Some(result) = self.result() {
            return Poll::Ready(result);
        }
        if self.poller.is_none() {
            self.poller = Poller::start(self.readback.watch.clone(), POLL_PERIOD);
        }
        Poll::Pending
    }
}

impl<T: Element> Unpin for Download<T> {}
