//! Threads work alone, each with its own shard, and yet the figures of all together are exact.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use crate::pool::simulated::{SimulatedBuffer, SimulatedSource};
use crate::pool::sync::lock;
use crate::pool::{Lease, Pool, PoolOptions, STORAGE_USAGE};

type Held = Vec<Lease<SimulatedBuffer>>;

/// A step of a thread.
type Step = fn(&Pool<SimulatedBuffer>, &mut Held);

/// A thread with leases of its own, which does one step after the other and tells when each is done.
struct Worker {
    steps: Sender<Step>,
    done: Receiver<()>,
}

impl Worker {
    fn new(pool: &Pool<SimulatedBuffer>) -> Self {
        let pool = pool.clone();
        let (steps, received) = channel::<Step>();
        let (tell, done) = channel();
        thread::spawn(move || {
            let mut held = Vec::new();
            for step in received {
                step(&pool, &mut held);
                if tell.send(()).is_err() {
                    break;
                }
            }
        });
        Self { steps, done }
    }

    fn begin(&self, step: Step) {
        self.steps.send(step).expect("the thread waits for steps");
    }

    /// Whether the step is done. It takes microseconds, unless it waits for a lock.
    fn is_done(&self) -> bool {
        self.done.recv_timeout(Duration::from_secs(10)).is_ok()
    }

    fn does(&self, step: Step) {
        self.begin(step);
        assert!(self.is_done());
    }
}

fn pool() -> Pool<SimulatedBuffer> {
    Pool::from_source(SimulatedSource::new(1 << 30), PoolOptions::default())
}

fn lend(pool: &Pool<SimulatedBuffer>, held: &mut Held) {
    held.extend((0..8).map(|_| pool.acquire("any", 1 << 20, STORAGE_USAGE).expect("lends")));
}

fn give_back(_: &Pool<SimulatedBuffer>, held: &mut Held) {
    held.clear();
}

/// 40 leases, and as many returns.
fn rounds(pool: &Pool<SimulatedBuffer>, held: &mut Held) {
    for _ in 0..5 {
        lend(pool, held);
        give_back(pool, held);
    }
}

#[test]
fn what_was_done_before_needs_no_lock_of_all() {
    let pool = pool();
    let worker = Worker::new(&pool);
    worker.does(lend);
    worker.does(give_back);
    worker.does(rounds);
    let ledger = lock(&pool.core().ledger.0);
    worker.begin(rounds);
    let alone = worker.is_done();
    drop(ledger);
    assert!(alone);
    let stats = pool.stats();
    assert_eq!((stats.creates, stats.hits()), (8, 80), "{stats}");
    assert!(stats.identities_hold(), "{stats}");
}

#[test]
fn peaks_of_threads_together_are_seen_however_they_take_turns() {
    let pool = pool();
    let [one, other] = [(); 2].map(|()| Worker::new(&pool));
    let peaks = || {
        let stats = pool.stats();
        [
            stats.leases.peak,
            stats.leased_bytes.peak >> 20,
            stats.free.peak,
        ]
    };
    // Each alone, in turns: never more than 8.
    for _ in 0..20 {
        for worker in [&one, &other] {
            worker.does(lend);
            worker.does(give_back);
        }
    }
    assert_eq!(peaks(), [8, 8, 8]);
    // Together for a moment.
    one.does(lend);
    other.does(lend);
    one.does(give_back);
    other.does(give_back);
    assert_eq!(peaks(), [16, 16, 16]);
    for _ in 0..20 {
        for worker in [&one, &other] {
            worker.does(rounds);
        }
    }
    assert_eq!(peaks(), [16, 16, 16]);
    pool.reset_peaks();
    assert_eq!(peaks(), [0, 0, 16]);
    other.does(lend);
    one.does(lend);
    one.does(give_back);
    assert_eq!(peaks(), [16, 16, 16]);
    other.does(give_back);
}
