//! A transport for groups of processes.

use std::ffi::c_int;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use dilated_attention::distributed::{Transport, TransportError};

use crate::raw::{Buffers, Exchange, Session};

/// The largest tag that every MPI has.
const LAST_TAG: c_int = 32_767;

/// The longest pause between two looks at what has arrived. MPI works on messages only meanwhile.
const LONGEST_PAUSE: Duration = Duration::from_micros(200);

/// Carries a group of processes over MPI. [`run`](crate::run) makes the one of all processes.
pub struct MpiTransport {
    session: Arc<Session>,
    /// The processes of the group by their ranks in MPI, in the order of the group.
    processes: Vec<c_int>,
    /// Index of this process among them.
    rank: usize,
    /// On all messages of this group, and on none of any other that shares two processes with it.
    tag: c_int,
    /// Number of the next sub-group that this process names, in all of its groups.
    next_name: Arc<AtomicI32>,
    largest_message: usize,
    /// From the last exchange.
    buffers: Mutex<(Buffers, Buffers)>,
}

impl MpiTransport {
    /// The group of all processes.
    pub(crate) fn of_all(session: &Arc<Session>, largest_message: usize) -> Self {
        Self {
            session: Arc::clone(session),
            processes: (0..session.size()).collect(),
            rank: session.rank() as usize,
            tag: 0,
            next_name: Arc::new(AtomicI32::new(1)),
            largest_message,
            buffers: Mutex::default(),
        }
    }

    /// The buffers for an exchange, those of the last one where they are large enough. None are for what a rank sends to itself.
    /// `sources` says in which of the outgoing ones the bytes for each rank are.
    fn buffers(
        &self,
        sends: &[&[u8]],
        receives: &[&mut [u8]],
        sources: &[usize],
    ) -> Result<(Buffers, Buffers), TransportError> {
        let mut kept = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut outgoing, mut incoming) = std::mem::take(&mut *kept);
        outgoing.resize_with(self.processes.len(), Vec::new);
        incoming.resize_with(self.processes.len(), Vec::new);
        for rank in (0..self.processes.len()).filter(|rank| *rank != self.rank) {
            let send = match sources[rank] == rank {
                true => sends[rank],
                false => &[],
            };
            outgoing[rank].clear();
            reserve(&mut outgoing[rank], send.len())?;
            outgoing[rank].extend_from_slice(send);
            let length = receives[rank].len();
            incoming[rank].truncate(length);
            reserve(&mut incoming[rank], length)?;
            incoming[rank].resize(length, 0);
        }
        Ok((outgoing, incoming))
    }
}

/// For each rank the first that is sent the same slice, so that an all-gather copies its bytes once. `own`, to which nothing is sent,
/// is its own source alone.
fn sources(sends: &[&[u8]], own: usize) -> Vec<usize> {
    let source = |rank: usize| {
        let same = |other: &usize| {
            *other != own && rank != own && std::ptr::eq(sends[*other], sends[rank])
        };
        (0..rank).find(same).unwrap_or(rank)
    };
    (0..sends.len()).map(source).collect()
}

/// Makes room for `length` bytes in all.
fn reserve(buffer: &mut Vec<u8>, length: usize) -> Result<(), TransportError> {
    let more = length.saturating_sub(buffer.len());
    buffer
        .try_reserve_exact(more)
        .map_err(|_| TransportError::Failed {
            reason: format!("the host has no {length} bytes for a message"),
        })
}

impl Transport for MpiTransport {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.processes.len()
    }

    fn all_to_all(
        &self,
        sends: &[&[u8]],
        receives: &mut [&mut [u8]],
        deadline: Instant,
    ) -> Result<(), TransportError> {
        receives[self.rank].copy_from_slice(sends[self.rank]);
        // MPI cannot lose its buffers before a message is done, so they are not the caller's, who gets the error of a deadline before.
        let sources = sources(sends, self.rank);
        let (outgoing, incoming) = self.buffers(sends, receives, &sources)?;
        let mut exchange = Exchange::start(
            &self.session,
            &self.processes,
            self.tag,
            self.largest_message,
            (outgoing, &sources),
            incoming,
        )?;
        let mut pause = Duration::from_micros(10);
        while !exchange.poll()? {
            if Instant::now() >= deadline {
                let ranks = exchange.late();
                return Err(TransportError::Late { ranks });
            }
            thread::sleep(pause);
            pause = (2 * pause).min(LONGEST_PAUSE);
        }
        let (outgoing, incoming) = exchange.into_buffers();
        for (rank, receive) in receives.iter_mut().enumerate() {
            if rank != self.rank {
                receive.copy_from_slice(&incoming[rank]);
            }
        }
        *self.buffers.lock().unwrap_or_else(PoisonError::into_inner) = (outgoing, incoming);
        Ok(())
    }

    fn split(&self, color: u32, deadline: Instant) -> Result<Box<dyn Transport>, TransportError> {
        let name = self.next_name.fetch_add(1, Ordering::Relaxed);
        let mut own = [0; 8];
        own[..4].copy_from_slice(&color.to_le_bytes());
        own[4..].copy_from_slice(&name.to_le_bytes());
        let mut all = vec![[0; 8]; self.processes.len()];
        let mut receives: Vec<_> = all.iter_mut().map(|bytes| &mut bytes[..]).collect();
        let sends = vec![own.as_slice(); self.processes.len()];
        self.all_to_all(&sends, &mut receives, deadline)?;

        let is_same = |rank: &usize| all[*rank][..4] == own[..4];
        let members: Vec<_> = (0..self.processes.len()).filter(is_same).collect();
        // The first member names the group. No other group has its tag: of the same process it has another number, and of another
        // process another remainder by the number of all processes.
        let first = members[0];
        let mut name = [0; 4];
        name.copy_from_slice(&all[first][4..]);
        let name = c_int::from_le_bytes(name);
        let tag = name
            .checked_mul(self.session.size())
            .and_then(|tag| tag.checked_add(self.processes[first]))
            .filter(|tag| *tag <= LAST_TAG);
        let tag = tag.ok_or_else(|| TransportError::Failed {
            reason: format!(
                "no tag is left for sub-group {name} of rank {first}: MPI has {LAST_TAG} for {} processes; split once, not in each step",
                self.session.size()
            ),
        })?;
        Ok(Box::new(Self {
            session: Arc::clone(&self.session),
            processes: members.iter().map(|rank| self.processes[*rank]).collect(),
            rank: members.iter().filter(|rank| **rank < self.rank).count(),
            tag,
            next_name: Arc::clone(&self.next_name),
            largest_message: self.largest_message,
            buffers: Mutex::default(),
        }))
    }
}
