//! Groups of threads of one process.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::group::Group;
use super::transport::{Transport, TransportError};

/// A group of `size` ranks in this process, one [`Group`] for each, in order: to be moved to a thread each. Each call has `timeout`.
///
/// A group that is dropped, also by a panic, has left: whoever still waits for that rank gets
/// [`GroupError::Left`](super::GroupError::Left) at once.
///
/// What one rank sends another is copied into a buffer between the two, and from there; it stays allocated for the next call.
pub fn in_process(size: usize, timeout: Duration) -> Vec<Group> {
    let hub = Arc::new(Hub::new(size));
    let ranks = (0..size).map(|rank| Group::new(Box::new(Member::new(&hub, rank)), timeout));
    ranks.collect()
}

/// What all ranks share.
struct Hub {
    size: usize,
    board: Mutex<Board>,
    /// Notified when the board changes.
    changed: Condvar,
    /// The message on its way for each (from, to). Which of the two may touch it is on the board, so nobody waits for these locks.
    messages: Vec<Mutex<Vec<u8>>>,
}

/// Who may do what.
struct Board {
    /// For each (from, to): the message is there and was not taken yet.
    full: Vec<bool>,
    /// For each rank: it has left.
    left: Vec<bool>,
    /// Hubs that some of their ranks have not joined yet, by number of the split and color, and how many have.
    splits: HashMap<(u64, u32), (Arc<Hub>, usize)>,
}

impl Hub {
    fn new(size: usize) -> Self {
        Self {
            size,
            board: Mutex::new(Board {
                full: vec![false; size * size],
                left: vec![false; size],
                splits: HashMap::new(),
            }),
            changed: Condvar::new(),
            messages: (0..size * size).map(|_| Mutex::default()).collect(),
        }
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        lock(&self.board)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One rank.
struct Member {
    hub: Arc<Hub>,
    rank: usize,
    /// Number of splits so far, the same on all ranks.
    splits: AtomicU64,
}

/// Half of what a pair of ranks has to do: to fill their message, or to take it.
#[derive(Clone, Copy)]
struct Half {
    other: usize,
    message: usize,
    fills: bool,
}

impl Member {
    fn new(hub: &Arc<Hub>, rank: usize) -> Self {
        Self {
            hub: Arc::clone(hub),
            rank,
            splits: AtomicU64::new(0),
        }
    }

    /// All that this rank has to do in an exchange. No message is made of 0 bytes.
    fn halves(&self, sends: &[&[u8]], receives: &[&mut [u8]]) -> Vec<Half> {
        let others = (0..self.hub.size).filter(|other| *other != self.rank);
        let halves = others.flat_map(|other| {
            let fill = Half {
                other,
                message: self.rank * self.hub.size + other,
                fills: true,
            };
            let take = Half {
                other,
                message: other * self.hub.size + self.rank,
                fills: false,
            };
            [
                (!sends[other].is_empty()).then_some(fill),
                (!receives[other].is_empty()).then_some(take),
            ]
        });
        halves.flatten().collect()
    }

    fn copy(
        &self,
        half: Half,
        sends: &[&[u8]],
        receives: &mut [&mut [u8]],
    ) -> Result<(), TransportError> {
        let failed = |reason| Err(TransportError::Failed { reason });
        let mut message = lock(&self.hub.messages[half.message]);
        if half.fills {
            let send = sends[half.other];
            message.clear();
            if message.try_reserve_exact(send.len()).is_err() {
                return failed(format!(
                    "the host has no {} bytes for a message",
                    send.len()
                ));
            }
            message.extend_from_slice(send);
        } else {
            let receive = &mut *receives[half.other];
            if message.len() != receive.len() {
                return failed(format!(
                    "rank {} sent {} bytes where {} were expected",
                    half.other,
                    message.len(),
                    receive.len()
                ));
            }
            receive.copy_from_slice(&message);
        }
        Ok(())
    }
}

impl Transport for Member {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.hub.size
    }

    fn all_to_all(
        &self,
        sends: &[&[u8]],
        receives: &mut [&mut [u8]],
        deadline: Instant,
    ) -> Result<(), TransportError> {
        receives[self.rank].copy_from_slice(sends[self.rank]);
        let mut pending = self.halves(sends, receives);
        let mut board = self.hub.board();
        while !pending.is_empty() {
            let is_ready = |half: &Half| board.full[half.message] != half.fills;
            let (ready, rest): (Vec<_>, Vec<_>) = pending.into_iter().partition(is_ready);
            pending = rest;
            if !ready.is_empty() {
                // Other ranks copy at the same time.
                drop(board);
                for half in &ready {
                    self.copy(*half, sends, receives)?;
                }
                board = self.hub.board();
                for half in &ready {
                    board.full[half.message] = half.fills;
                }
                self.hub.changed.notify_all();
                continue;
            }
            // Only now: a rank that has left may have done its part before.
            let mut ranks: Vec<_> = pending.iter().map(|half| half.other).collect();
            ranks.sort_unstable();
            ranks.dedup();
            if let Some(rank) = ranks.iter().find(|rank| board.left[**rank]) {
                return Err(TransportError::Left { rank: *rank });
            }
            let time = deadline.saturating_duration_since(Instant::now());
            if time.is_zero() {
                return Err(TransportError::Late { ranks });
            }
            let waited = self.hub.changed.wait_timeout(board, time);
            board = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    fn split(&self, color: u32, deadline: Instant) -> Result<Box<dyn Transport>, TransportError> {
        let mut colors = vec![[0; 4]; self.hub.size];
        let own = color.to_le_bytes();
        let mut receives: Vec<_> = colors.iter_mut().map(|bytes| &mut bytes[..]).collect();
        self.all_to_all(&vec![&own[..]; self.hub.size], &mut receives, deadline)?;
        let is_same = |rank: &usize| colors[*rank] == own;
        let size = (0..self.hub.size).filter(is_same).count();
        let rank = (0..self.rank).filter(is_same).count();

        let key = (self.splits.fetch_add(1, Ordering::Relaxed), color);
        let mut board = self.hub.board();
        let (hub, joined) = board
            .splits
            .entry(key)
            .or_insert_with(|| (Arc::new(Hub::new(size)), 0));
        let member = Self::new(hub, rank);
        *joined += 1;
        if *joined == size {
            board.splits.remove(&key);
        }
        Ok(Box::new(member))
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.hub.board().left[self.rank] = true;
        self.hub.changed.notify_all();
    }
}
