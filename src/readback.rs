//! Results on their way to the host.
//!
//! [`Recorder::download`](crate::Recorder::download) makes a [`Download`], and so does
//! [`PoolEncoder::download`](crate::PoolEncoder::download). It is filled when its recording was submitted and the device is
//! done. [`wait`](Download::wait) reads it, blocking, or `.await` on any executor. Its buffer goes back to the pool when neither
//! the download nor the device uses it any more.
//!
//! **Seals.** wgpu maps the buffers of an encoder even when it refused to run the encoder. The buffer then holds what an
//! earlier download left there. So the recording writes a seal behind the elements: eight bytes, a number that no other
//! readback ever has. The elements are valid only with that number behind them. Otherwise the place may hold elements of an
//! earlier, larger download; these equal the seal with a probability of 2^-64.

use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context as TaskContext, Poll, Waker};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::label::Label;
use crate::pool::{Lease, Pool, READBACK_USAGE};
use crate::random::Random;
use crate::scope;
use crate::watch::{DeviceWatch, Outcome, Polling};

/// How long to wait for a callback that another thread's poll is about to run.
const CALLBACK_GRACE: Duration = Duration::from_millis(20);

/// How often to look for the callback on an idle device before the device counts as lost: 0.8 seconds in all.
const IDLE_ROUNDS: u32 = 40;

/// How often the device is polled while a download is awaited.
const POLL_PERIOD: Duration = Duration::from_millis(1);

/// The stage that a download has reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Its recording was not submitted yet.
    Recorded,
    /// Its sliced submission has not reached it yet.
    Slicing,
    /// It is in an application's encoder. Only the application knows whether that was submitted.
    Encoded,
    /// It was submitted, and the device will call back.
    Submitted,
    /// The buffer is mapped and carries the download's seal.
    Ready,
    /// The buffer is mapped, but nothing wrote it.
    Unsealed,
    /// The elements will never come, for this reason: the recording was dropped unsubmitted.
    Abandoned(&'static str),
    /// The elements will never come: the device is lost.
    Lost,
}

impl Stage {
    /// Whether the elements may still come.
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
    /// The number that the recording writes behind the elements.
    seal: [u8; SEAL_BYTES],
    watch: Arc<DeviceWatch>,
    progress: Mutex<Progress>,
    /// Signalled when the stage changes.
    changed: Condvar,
}

/// Bytes of a seal. It begins at a multiple of this number, because mapped ranges must.
const SEAL_BYTES: usize = 8;

/// Bytes of a buffer that holds `bytes` bytes of elements and a seal.
fn sealed_bytes(bytes: u64) -> Option<u64> {
    let seal = SEAL_BYTES as u64;
    bytes.checked_next_multiple_of(seal)?.checked_add(seal)
}

/// A number that no other readback of this process has. It is a count, mixed one to one so that elements hardly ever equal
/// it.
fn new_seal() -> [u8; SEAL_BYTES] {
    static COUNT: AtomicU64 = AtomicU64::new(1);
    Random::new(COUNT.fetch_add(1, Ordering::Relaxed), 0)
        .bits()
        .to_le_bytes()
}

impl Readback {
    /// A buffer of `pool` for `bytes` bytes and the seal behind them.
    ///
    /// # Errors
    /// [`Error::SizeOverflow`], and those of [`Pool::acquire`].
    pub fn lease_of(
        pool: &Pool,
        watch: &Arc<DeviceWatch>,
        label: &Label,
        bytes: u64,
    ) -> Result<Arc<Self>> {
        let sealed = sealed_bytes(bytes).ok_or_else(|| Error::SizeOverflow {
            what: label.clone(),
            given: format!("{bytes} bytes"),
        })?;
        Ok(Arc::new(Self {
            lease: pool.acquire(label, sealed, READBACK_USAGE)?,
            seal: new_seal(),
            watch: watch.clone(),
            progress: Mutex::new(Progress {
                stage: Stage::Recorded,
                waker: None,
            }),
            changed: Condvar::new(),
        }))
    }

    /// Most bytes of elements that one readback holds on a device whose largest buffer has `max_buffer_bytes`.
    pub fn most_bytes(max_buffer_bytes: u64) -> u64 {
        let seal = SEAL_BYTES as u64;
        (max_buffer_bytes / seal * seal)
            .saturating_sub(seal)
            .max(seal)
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

    /// The stage of a download whose buffer was mapped: whether it holds this download's seal.
    fn mapped(&self) -> Stage {
        let range = self.seal_offset()..self.lease.requested_bytes();
        match crate::watch::catch(|| self.lease.buffer().get_mapped_range(range)) {
            Ok(Ok(view)) if view[..] == self.seal => Stage::Ready,
            Ok(Ok(_)) => Stage::Unsealed,
            // Only the buffers of a lost device cannot be read once they are mapped.
            Ok(Err(_)) | Err(_) => {
                self.watch.lose("a mapped buffer could not be read");
                Stage::Lost
            }
        }
    }

    /// Whether the download's own submission has run, so that the elements are here.
    pub fn is_ready(&self) -> bool {
        self.lock().stage == Stage::Ready
    }

    /// Notes that the recording is submitted in slices.
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

    /// Notes that the recording submitted the encoder that holds the download.
    pub fn submitted(&self) {
        let mut progress = self.lock();
        if progress.stage == Stage::Encoded {
            progress.stage = Stage::Submitted;
        }
    }

    /// Fails the download with `reason` if its recording was not submitted.
    pub fn abandon(&self, reason: &'static str) {
        let stage = self.lock().stage;
        if matches!(stage, Stage::Recorded | Stage::Slicing) {
            self.set(Stage::Abandoned(reason));
        }
    }

    /// Notes that wgpu has called back, or never will.
    fn arrived(&self, outcome: Outcome) {
        self.set(match outcome {
            Outcome::Done => self.mapped(),
            Outcome::Dropped => {
                Stage::Abandoned("its encoder was dropped unsubmitted: record it again")
            }
            Outcome::Lost => Stage::Lost,
        });
    }

    fn not_submitted(&self, stage: Stage) -> Error {
        Error::NotSubmitted {
            label: self.lease.label().clone(),
            next_step: match stage {
                Stage::Slicing => "advance its sliced submission further",
                Stage::Encoded => "submit the encoder that its recording went to",
                _ => "submit its recording",
            },
        }
    }

    /// Whether the bytes may still come.
    fn is_pending(&self) -> bool {
        self.lock().stage.is_pending()
    }

    /// Whether the bytes are here; an error if they will never come.
    fn check(&self) -> Result<bool> {
        let stage = self.lock().stage;
        match stage {
            _ if stage.is_pending() => Ok(false),
            Stage::Ready => Ok(true),
            // A recording that a lost device refused is also dropped, so ask for the loss first.
            Stage::Unsealed | Stage::Abandoned(_) if self.watch.is_lost() => {
                Err(self.watch.lost_error("the device gave no reason"))
            }
            Stage::Unsealed => Err(Error::DownloadAbandoned {
                label: self.lease.label().clone(),
                reason: "wgpu refused to run the encoder that it is in: see its error, then record it again",
            }),
            Stage::Abandoned(reason) => Err(Error::DownloadAbandoned {
                label: self.lease.label().clone(),
                reason,
            }),
            _ => Err(self.watch.lost_error("a buffer could not be mapped")),
        }
    }

    /// Copies the first bytes, which are here.
    fn read(&self, bytes: &mut [u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let lost = |error: &dyn std::fmt::Display| self.watch.lost_error(&error.to_string());
        let range = 0..self.seal_offset();
        let view = crate::watch::catch(|| self.lease.buffer().get_mapped_range(range))
            .map_err(|panic| lost(&panic))?
            .map_err(|error| lost(&error))?;
        bytes.copy_from_slice(&view[..bytes.len()]);
        Ok(())
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
        // Buffers wait unmapped in the pool. On a lost device the buffer is destroyed already, and wgpu would report an
        // error.
        if matches!(self.lock().stage, Stage::Ready | Stage::Unsealed) {
            let _ = scope::catch(&self.watch, || self.lease.buffer().unmap());
        }
    }
}

/// A tensor on its way to the host. [`wait`](Self::wait) blocks until its elements are here, row-major. As a future it
/// resolves to the same elements or errors. If it is polled before its recording was submitted, it resolves to
/// [`Error::NotSubmitted`] at once.
///
/// Until it is dropped it holds buffers of the pool, as large as the tensor: under a [budget](crate::PoolOptions), drop
/// downloads whose elements are here.
#[derive(Debug)]
#[must_use = "nothing is read from a download that nobody waits for"]
pub struct Download<T: bytemuck::Pod> {
    /// The first elements, or all. A field of its own, and the first one: whether wgpu's types are `Send` is a long chain of
    /// questions, and through a `Vec` it would be longer than the compiler follows in crates with its default limit.
    first: Arc<Readback>,
    /// The others in order, one buffer after the other.
    others: Vec<Arc<Readback>>,
    num_elements: usize,
    polling: Option<Polling>,
    element: PhantomData<T>,
}

impl<T: bytemuck::Pod> Download<T> {
    /// `num_elements` elements in `first` and `others`, each of which but the last holds a multiple of 8 bytes.
    pub(crate) fn new(
        first: Arc<Readback>,
        others: Vec<Arc<Readback>>,
        num_elements: usize,
    ) -> Self {
        Self {
            first,
            others,
            num_elements,
            polling: None,
            element: PhantomData,
        }
    }

    /// Blocks until the elements are here and returns a copy of them. It may be called again. Browsers cannot block; use
    /// `.await` there.
    ///
    /// # Errors
    /// [`Error::NotSubmitted`] while the recording, or the application's encoder, was not submitted: submit it and wait
    /// again. [`Error::DownloadAbandoned`] (also where wgpu refused to run the encoder) and [`Error::DeviceLost`] when the
    /// elements will never come.
    pub fn wait(&self) -> Result<Vec<T>> {
        let mut idle_rounds = 0;
        let mut num_pending = usize::MAX;
        while idle_rounds < IDLE_ROUNDS {
            if let Some(result) = self.result() {
                return result;
            }
            let is_here = |is_idle| is_idle || self.is_ready();
            if let Err(lost) = self.watch().wait_until(is_here) {
                return self.result().unwrap_or(Err(lost));
            }
            // Another thread's poll may be about to run the callbacks, one buffer after the other.
            let pending = self.readbacks().filter(|readback| readback.is_pending());
            let before = std::mem::replace(&mut num_pending, pending.count());
            idle_rounds = if num_pending < before {
                0
            } else {
                idle_rounds + 1
            };
            let Some(readback) = self.first_pending() else {
                continue;
            };
            let progress = readback.lock();
            let before = progress.stage;
            if before.is_pending() {
                let waited = readback.changed.wait_timeout(progress, CALLBACK_GRACE);
                let (progress, _) = waited.unwrap_or_else(PoisonError::into_inner);
                if progress.stage == before && before != Stage::Submitted {
                    drop(progress);
                    return Err(readback.not_submitted(before));
                }
            }
        }
        let never = "it is idle, but a buffer was never mapped";
        Err(self.watch().lost_error(never))
    }

    /// Whether [`wait`](Self::wait) would return at once. Never blocks. Something must poll the device meanwhile:
    /// [`Context::poll`](crate::Context::poll), or any submission; with a pool alone, `wgpu::Device::poll`.
    pub fn is_ready(&self) -> bool {
        self.watch().is_lost() || self.first_pending().is_none()
    }

    fn watch(&self) -> &Arc<DeviceWatch> {
        &self.first.watch
    }

    fn readbacks(&self) -> impl Iterator<Item = &Arc<Readback>> {
        std::iter::once(&self.first).chain(&self.others)
    }

    fn first_pending(&self) -> Option<&Arc<Readback>> {
        self.readbacks().find(|readback| readback.is_pending())
    }

    /// The elements if they are here, an error if they will never come, else `None`.
    fn result(&self) -> Option<Result<Vec<T>>> {
        let mut is_pending = false;
        for readback in self.readbacks() {
            match readback.check() {
                Err(error) => return Some(Err(error)),
                Ok(is_here) => is_pending |= !is_here,
            }
        }
        (!is_pending).then(|| self.read())
    }

    fn read(&self) -> Result<Vec<T>> {
        let mut elements = vec![T::zeroed(); self.num_elements];
        let mut left = bytemuck::cast_slice_mut::<T, u8>(&mut elements);
        for readback in self.readbacks() {
            let size = left.len().min(readback.seal_offset() as usize);
            let (part, behind) = left.split_at_mut(size);
            readback.read(part)?;
            left = behind;
        }
        Ok(elements)
    }
}

impl<T: bytemuck::Pod> Future for Download<T> {
    type Output = Result<Vec<T>>;

    fn poll(mut self: Pin<&mut Self>, context: &mut TaskContext<'_>) -> Poll<Self::Output> {
        if let Err(lost) = self.watch().poll() {
            return Poll::Ready(self.result().unwrap_or(Err(lost)));
        }
        for readback in self.readbacks() {
            let mut progress = readback.lock();
            match progress.stage {
                stage @ (Stage::Recorded | Stage::Slicing) => {
                    drop(progress);
                    return Poll::Ready(Err(readback.not_submitted(stage)));
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
            self.polling = Some(self.watch().keep_polling(POLL_PERIOD));
        }
        Poll::Pending
    }
}

impl<T: bytemuck::Pod> Unpin for Download<T> {}
