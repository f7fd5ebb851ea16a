//! Results on their way to the host.
//!
//! A [`Download`] is made by [`Recorder::download`](crate::Recorder::download), filled when its recording was submitted and the
//! device is done, and read by [`wait`](Download::wait) (blocking) or `.await` (any executor). Its buffer goes back to the
//! pool when both the download and the device have let go of it.
//!
//! **Seals.** That a buffer could be mapped says nothing of what is in it: wgpu maps the buffers of an encoder also when it
//! refused to run the encoder, and then the buffer holds what a download before left there. So behind the elements lie eight
//! bytes that the recording writes after them, a number that no other readback has or had. Only with that number there the
//! elements are the download's. (Whatever else may lie there is elements of an earlier, larger download: those are equal to it
//! with a probability of 2^-64.)

use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context as TaskContext, Poll, Waker};
use std::time::Duration;

use crate::device::Element;
use crate::error::{Error, Result};
use crate::pool::Lease;
use crate::random::Random;
use crate::scope;
use crate::watch::{DeviceWatch, Outcome, Polling};

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
    /// In a sliced submission that was not advanced as far yet.
    Slicing,
    /// In an encoder of the application's; whether that was submitted, only the application knows.
    Encoded,
    /// On the way: the device will call back.
    Submitted,
    /// Mapped, and sealed by the submission that it belongs to.
    Ready,
    /// Mapped, but nothing wrote it.
    Unsealed,
    /// They will never come: this was dropped unsubmitted.
    Abandoned(&'static str),
    /// They will never come: the device is lost.
    Lost,
}

impl Stage {
    /// Whether the bytes may come yet.
    fn is_pending(self) -> bool {
        matches!(
            self,
            Self::Recorded | Self::Slicing | Self::Encoded | Self::Submitted
        )
    }
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
    /// What the recording writes behind the elements.
    seal: [u8; SEAL_BYTES],
    watch: Arc<DeviceWatch>,
    progress: Mutex<Progress>,
    /// Signalled when the stage changes.
    changed: Condvar,
}

/// Bytes of a seal. It begins at a multiple of as many, where a mapped range may.
const SEAL_BYTES: usize = 8;

/// Bytes of a buffer for `bytes` of elements and a seal.
pub(crate) fn sealed_bytes(bytes: u64) -> Option<u64> {
    let seal = SEAL_BYTES as u64;
    bytes.checked_next_multiple_of(seal)?.checked_add(seal)
}

/// A number that no other readback of this process has: a count, mixed (one to one) so that elements hardly ever equal it.
fn new_seal() -> [u8; SEAL_BYTES] {
    static COUNT: AtomicU64 = AtomicU64::new(1);
    Random::new(COUNT.fetch_add(1, Ordering::Relaxed), 0)
        .bits()
        .to_le_bytes()
}

impl Readback {
    pub fn new(lease: Lease, watch: Arc<DeviceWatch>) -> Arc<Self> {
        Arc::new(Self {
            lease,
            seal: new_seal(),
            watch,
            progress: Mutex::new(Progress {
                stage: Stage::Recorded,
                waker: None,
            }),
            changed: Condvar::new(),
        })
    }

    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    pub fn seal(&self) -> [u8; SEAL_BYTES] {
        self.seal
    }

    pub fn seal_offset(&self) -> u64 {
        self.lease.requested_bytes() - SEAL_BYTES as u64
    }

    /// What a mapping has brought.
    fn mapped(&self) -> Stage {
        let range = self.seal_offset()..self.lease.requested_bytes();
        match crate::watch::catch(|| self.lease.buffer().get_mapped_range(range)) {
            Ok(Ok(view)) if view[..] == self.seal => Stage::Ready,
            Ok(Ok(_)) => Stage::Unsealed,
            Ok(Err(_)) | Err(_) => Stage::Lost,
        }
    }

    /// Whether the submission that it belongs to has run, and the elements are here.
    pub fn is_ready(&self) -> bool {
        self.lock().stage == Stage::Ready
    }

    /// The recording is submitted in slices.
    pub fn in_slices(&self) {
        self.set(Stage::Slicing);
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

    /// Fails the download, for `reason`, if its recording goes away unsubmitted.
    pub fn abandon(&self, reason: &'static str) {
        let stage = self.lock().stage;
        if matches!(stage, Stage::Recorded | Stage::Slicing) {
            self.set(Stage::Abandoned(reason));
        }
    }

    /// wgpu has called back, or never will.
    fn arrived(&self, outcome: Outcome) {
        self.set(match outcome {
            Outcome::Done => self.mapped(),
            Outcome::Dropped => {
                Stage::Abandoned("its encoder was dropped unsubmitted: record it again")
            }
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
        if matches!(self.lock().stage, Stage::Ready | Stage::Unsealed) {
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
    polling: Option<Polling>,
    element: PhantomData<T>,
}

impl<T: Element> Download<T> {
    pub(crate) fn new(readback: Arc<Readback>, num_elements: usize) -> Self {
        Self {
            readback,
            num_elements,
            polling: None,
            element: PhantomData,
        }
    }

    /// Blocks until the elements are here. May be called again; each call copies the elements anew. In browsers, which cannot
    /// block, use `.await`.
    ///
    /// # Errors
    /// [`Error::NotSubmitted`] while the recording (or the embedder's encoder) was not submitted: submit it and wait
    /// again. [`Error::DownloadAbandoned`] (also where wgpu refused to run the encoder) and [`Error::DeviceLost`] when the
    /// elements will never come.
    pub fn wait(&self) -> Result<Vec<T>> {
        for _ in 0..IDLE_ROUNDS {
            if let Some(result) = self.result() {
                return result;
            }
            let is_here = |is_idle| is_idle || self.is_ready();
            if let Err(lost) = self.readback.watch.wait_until(is_here) {
                return self.result().unwrap_or(Err(lost));
            }
            // Another thread's poll may be the one that is about to call back.
            let progress = self.readback.lock();
            let before = progress.stage;
            if before.is_pending() {
                let waited = self.readback.changed.wait_timeout(progress, CALLBACK_GRACE);
                let (progress, _) = waited.unwrap_or_else(PoisonError::into_inner);
                if progress.stage == before && before != Stage::Submitted {
                    drop(progress);
                    return Err(self.not_submitted(before));
                }
            }
        }
        let never = "it is idle, but a buffer was never mapped";
        Err(self.readback.watch.lost_error(never))
    }

    /// Whether [`wait`](Self::wait) would return at once. Never blocks; something has to poll the device meanwhile
    /// ([`Context::poll`](crate::Context::poll), or any submission).
    pub fn is_ready(&self) -> bool {
        self.readback.watch.is_lost() || !self.readback.lock().stage.is_pending()
    }

    fn not_submitted(&self, stage: Stage) -> Error {
        Error::NotSubmitted {
            label: self.readback.lease.label(),
            next_step: match stage {
                Stage::Slicing => "advance its sliced submission further",
                Stage::Encoded => "submit the encoder that its recording went to",
                _ => "submit its recording",
            },
        }
    }

    /// The elements if they are here, an error if they will never be.
    fn result(&self) -> Option<Result<Vec<T>>> {
        let stage = self.readback.lock().stage;
        match stage {
            _ if stage.is_pending() => None,
            Stage::Ready => Some(self.read()),
            // A recording that a lost device refused is dropped, too.
            Stage::Unsealed | Stage::Abandoned(_) if self.readback.watch.is_lost() => {
                Some(Err(self
                    .readback
                    .watch
                    .lost_error("the device gave no reason")))
            }
            Stage::Unsealed => Some(Err(Error::DownloadAbandoned {
                label: self.readback.lease.label(),
                reason: "wgpu refused to run the encoder that it is in: see its error, then record it again",
            })),
            Stage::Abandoned(reason) => Some(Err(Error::DownloadAbandoned {
                label: self.readback.lease.label(),
                reason,
            })),
            _ => Some(Err(self
                .readback
                .watch
                .lost_error("a buffer could not be mapped"))),
        }
    }

    fn read(&self) -> Result<Vec<T>> {
        let mut elements = vec![T::zeroed(); self.num_elements];
        if elements.is_empty() {
            return Ok(elements);
        }
        let Readback { lease, watch, .. } = &*self.readback;
        let lost = |error: &dyn std::fmt::Display| watch.lost_error(&error.to_string());
        let range = 0..self.readback.seal_offset();
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
                stage @ (Stage::Recorded | Stage::Slicing) => {
                    drop(progress);
                    return Poll::Ready(Err(self.not_submitted(stage)));
                }
                Stage::Encoded | Stage::Submitted => {
                    progress.waker = Some(context.waker().clone());
                }
                Stage::Ready | Stage::Unsealed | Stage::Abandoned(_) | Stage::Lost => {}
            }
        }
        if let Some(result) = self.result() {
            self.polling = None;
            return Poll::Ready(result);
        }
        if self.polling.is_none() {
            self.polling = Some(self.readback.watch.keep_polling(POLL_PERIOD));
        }
        Poll::Pending
    }
}

impl<T: Element> Unpin for Download<T> {}
