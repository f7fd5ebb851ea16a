//! The calls of MPI itself: all that is unsafe.

#![expect(unsafe_code, reason = "MPI is a library in C")]

use std::ffi::{CStr, c_char, c_int};
use std::mem::{self, ManuallyDrop, MaybeUninit};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use dilated_attention::distributed::TransportError;
use mpi::Threading;
use mpi::environment::Universe;
use mpi::ffi;
use mpi::topology::{Communicator, SimpleCommunicator};
use mpi::traits::AsRaw;

/// MPI, from its start to its end, with a communicator that carries no messages but ours.
pub(crate) struct Session {
    /// Freed before MPI ends.
    communicator: ManuallyDrop<SimpleCommunicator>,
    universe: ManuallyDrop<Universe>,
    /// An exchange was given up while messages were on their way.
    is_unfinished: AtomicBool,
}

// SAFETY: what is not Send or Sync in a session are handles of MPI, which any thread may use at any time: `start` insists on
// MPI_THREAD_MULTIPLE.
unsafe impl Send for Session {}
// SAFETY: as above.
unsafe impl Sync for Session {}

impl Session {
    pub fn start() -> Result<Self, String> {
        let (universe, threading) = mpi::initialize_with_threading(Threading::Multiple)
            .ok_or("MPI was started before in this process; call run once")?;
        if threading != Threading::Multiple {
            return Err(format!(
                "this MPI offers threads at the level {threading:?}, needed is Multiple: use one built with it"
            ));
        }
        let communicator = universe.world().duplicate();
        // SAFETY: the communicator exists. From here on its errors are codes; before, they end the process.
        unsafe { ffi::MPI_Comm_set_errhandler(communicator.as_raw(), ffi::RSMPI_ERRORS_RETURN) };
        Ok(Self {
            communicator: ManuallyDrop::new(communicator),
            universe: ManuallyDrop::new(universe),
            is_unfinished: AtomicBool::new(false),
        })
    }

    pub fn rank(&self) -> c_int {
        self.communicator.rank()
    }

    pub fn size(&self) -> c_int {
        self.communicator.size()
    }

    /// Whether messages are on their way whose exchange was given up. Then MPI cannot end in order.
    pub fn is_unfinished(&self) -> bool {
        self.is_unfinished.load(Ordering::Relaxed)
    }

    /// Ends all processes.
    pub fn abort(&self) -> ! {
        self.universe.world().abort(1)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if *self.is_unfinished.get_mut() {
            return;
        }
        // SAFETY: both are dropped here alone, the universe last, which ends MPI.
        unsafe {
            ManuallyDrop::drop(&mut self.communicator);
            ManuallyDrop::drop(&mut self.universe);
        }
    }
}

/// Bytes for each rank of a group, or from each.
pub(crate) type Buffers = Vec<Vec<u8>>;

/// Messages on their way, with the buffers that MPI reads and writes meanwhile.
pub(crate) struct Exchange {
    session: Arc<Session>,
    outgoing: Buffers,
    incoming: Buffers,
    pending: Vec<Pending>,
}

/// A message that MPI has not told to be done.
struct Pending {
    request: ffi::MPI_Request,
    /// The other rank in its group.
    rank: usize,
    /// Bytes to be received; `None` where it is sent.
    expected: Option<c_int>,
}

impl Exchange {
    /// Starts to send to and to receive from each of `processes`, the ranks of a group, in messages of at most `largest` bytes. Rank r
    /// is sent the buffer `sources[r]` of `outgoing` and fills `incoming[r]`.
    pub fn start(
        session: &Arc<Session>,
        processes: &[c_int],
        tag: c_int,
        largest: usize,
        (outgoing, sources): (Buffers, &[usize]),
        incoming: Buffers,
    ) -> Result<Self, TransportError> {
        let mut exchange = Self {
            session: Arc::clone(session),
            outgoing,
            incoming,
            pending: Vec::new(),
        };
        let communicator = session.communicator.as_raw();
        for (rank, process) in processes.iter().enumerate() {
            // Messages of a pair arrive in the order in which they were sent, and so fit the pieces that wait for them.
            for piece in exchange.incoming[rank].chunks_mut(largest) {
                let count = count_of(piece.len())?;
                let mut request = MaybeUninit::uninit();
                // SAFETY: MPI writes to `piece` until the request is done. Until then `pending` has the request, and while it has any,
                // nothing else touches the buffers, nor frees them (see `into_buffers` and `drop`).
                let code = unsafe {
                    ffi::MPI_Irecv(
                        piece.as_mut_ptr().cast(),
                        count,
                        ffi::RSMPI_UINT8_T,
                        *process,
                        tag,
                        communicator,
                        request.as_mut_ptr(),
                    )
                };
                check(code)?;
                exchange.pending.push(Pending {
                    // SAFETY: MPI wrote it, since there was no error.
                    request: unsafe { request.assume_init() },
                    rank,
                    expected: Some(count),
                });
            }
        }
        for (rank, process) in processes.iter().enumerate() {
            for piece in exchange.outgoing[sources[rank]].chunks(largest) {
                let count = count_of(piece.len())?;
                let mut request = MaybeUninit::uninit();
                // SAFETY: as above; MPI only reads here.
                let code = unsafe {
                    ffi::MPI_Isend(
                        piece.as_ptr().cast(),
                        count,
                        ffi::RSMPI_UINT8_T,
                        *process,
                        tag,
                        communicator,
                        request.as_mut_ptr(),
                    )
                };
                check(code)?;
                exchange.pending.push(Pending {
                    // SAFETY: as above.
                    request: unsafe { request.assume_init() },
                    rank,
                    expected: None,
                });
            }
        }
        Ok(exchange)
    }

    /// Lets MPI work, without waiting; returns whether all is done.
    pub fn poll(&mut self) -> Result<bool, TransportError> {
        let mut index = 0;
        while let Some(message) = self.pending.get_mut(index) {
            let mut is_done = 0;
            let mut status = MaybeUninit::uninit();
            // SAFETY: the request is one that MPI has not told to be done.
            let code =
                unsafe { ffi::MPI_Test(&mut message.request, &mut is_done, status.as_mut_ptr()) };
            check(code)?;
            if is_done == 0 {
                index += 1;
                continue;
            }
            let Pending { rank, expected, .. } = self.pending.swap_remove(index);
            if let Some(expected) = expected {
                let mut count = 0;
                // SAFETY: MPI wrote the status, since a message was received.
                let code =
                    unsafe { ffi::MPI_Get_count(status.as_ptr(), ffi::RSMPI_UINT8_T, &mut count) };
                check(code)?;
                if count != expected {
                    return Err(failed(format!(
                        "rank {rank} sent {count} bytes where {expected} were expected"
                    )));
                }
            }
        }
        Ok(self.pending.is_empty())
    }

    /// The ranks whose messages are not done.
    pub fn late(&self) -> Vec<usize> {
        let mut ranks: Vec<_> = self.pending.iter().map(|message| message.rank).collect();
        ranks.sort_unstable();
        ranks.dedup();
        ranks
    }

    /// The buffers, outgoing and incoming; to be called once all is done. Else they are MPI's, and lost.
    pub fn into_buffers(mut self) -> (Buffers, Buffers) {
        self.give_up_unfinished();
        (mem::take(&mut self.outgoing), mem::take(&mut self.incoming))
    }

    /// Leaks the buffers of messages that are still on their way: MPI may read and write them as long as the process lives.
    fn give_up_unfinished(&mut self) {
        if !self.pending.is_empty() {
            self.session.is_unfinished.store(true, Ordering::Relaxed);
            mem::forget(mem::take(&mut self.outgoing));
            mem::forget(mem::take(&mut self.incoming));
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.give_up_unfinished();
    }
}

/// As MPI counts.
fn count_of(length: usize) -> Result<c_int, TransportError> {
    c_int::try_from(length).map_err(|_| {
        failed(format!(
            "a message of {length} bytes, MPI takes {} at most",
            c_int::MAX
        ))
    })
}

fn failed(reason: String) -> TransportError {
    TransportError::Failed { reason }
}

/// MPI's code as a value.
fn check(code: c_int) -> Result<(), TransportError> {
    if code == ffi::MPI_SUCCESS as c_int {
        return Ok(());
    }
    let mut text = [0 as c_char; ffi::MPI_MAX_ERROR_STRING as usize + 1];
    let mut length = 0;
    // SAFETY: the text has as many bytes as MPI writes at most, and one more, which stays 0.
    let reason = unsafe {
        ffi::MPI_Error_string(code, text.as_mut_ptr(), &mut length);
        CStr::from_ptr(text.as_ptr())
    };
    Err(failed(reason.to_string_lossy().into_owned()))
}
