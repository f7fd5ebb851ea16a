//! The pool when memory fails at any creation, when the device is lost, when a policy panics, and under many threads. No device: the
//! pool is generic over its buffers.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;

use wgpu::BufferUsages;

use crate::pool::simulated::{Faults, SimulatedBuffer, SimulatedSource};
use crate::pool::{Lease, Limits, Policy, Pool, PoolError, PoolOptions, STORAGE_USAGE, Usage};

/// Leases of a fixed program that fills, empties and refills a pool; stops at the first error.
fn program(pool: &Pool<SimulatedBuffer>) -> Result<(), PoolError> {
    let mut leases = Vec::new();
    for round in 0..3u64 {
        for i in 0..6 {
            leases.push(pool.acquire("a", (i + 1) << (16 + round), STORAGE_USAGE)?);
            leases.push(pool.acquire("b", 5000 + i, BufferUsages::UNIFORM)?);
        }
        leases.truncate(3);
    }
    Ok(())
}

#[test]
fn memory_may_fail_at_any_creation() {
    let whole = SimulatedSource::new(1 << 30);
    let pool = Pool::from_source(whole, PoolOptions::default());
    program(&pool).expect("nothing fails");
    let creations = pool.stats().creates;
    for fail_at in 0..creations {
        for fail_times in [1, 2, u64::MAX] {
            let faults = Faults {
                fail_at: Some(fail_at),
                fail_times,
                ..Faults::default()
            };
            let source = SimulatedSource::new(1 << 30).with_faults(faults);
            let pool = Pool::from_source(source.clone(), PoolOptions::default());
            let result = program(&pool);
            let stats = pool.stats();
            assert!(
                stats.identities_hold() && stats.leases.current == 0,
                "{stats}"
            );
            match (fail_times, result) {
                // Once is mended by trying again.
                (1, Ok(())) => assert_eq!(stats.recoveries, 1),
                (1, Err(error)) => panic!("creation {fail_at}: {error}"),
                (_, Err(PoolError::OutOfMemory { report, .. })) => {
                    assert_eq!(
                        report.stats.free.current, 0,
                        "all that was cached was given up"
                    );
                    assert!(report.stats.identities_hold());
                }
                (_, result) => panic!("creation {fail_at}: {result:?}"),
            }
            if fail_times < u64::MAX {
                program(&pool).expect("memory is back");
            }
            drop(pool);
            assert_eq!(source.buffers(), 0);
        }
    }
}

#[test]
fn a_request_succeeds_whenever_what_is_cached_suffices() {
    const MEMORY: u64 = 64 << 20;
    let faults = Faults {
        memory_bytes: Some(MEMORY),
        ..Faults::default()
    };
    let source = SimulatedSource::new(1 << 30).with_faults(faults);
    let pool = Pool::from_source(source.clone(), PoolOptions::default());
    let mut state = 99u64;
    let mut live: Vec<Lease<SimulatedBuffer>> = Vec::new();
    for step in 0..20_000u64 {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let bytes = 1 << (10 + (state >> 33) % 15);
        let usage = [STORAGE_USAGE, BufferUsages::UNIFORM][(state >> 50) as usize % 2];
        let live_bytes: u64 = live.iter().map(Lease::buffer_bytes).sum();
        match pool.acquire("any", bytes, usage) {
            Ok(lease) => live.push(lease),
            Err(PoolError::OutOfMemory { .. }) => {
                assert!(live_bytes + bytes > MEMORY, "step {step}: {}", pool.stats());
                live.truncate(live.len() / 2);
            }
            Err(error) => panic!("{error}"),
        }
        if live.len() > 40 {
            live.swap_remove((state >> 40) as usize % 40);
        }
        assert!(source.bytes() <= MEMORY);
    }
    assert!(pool.stats().recoveries > 100, "{}", pool.stats());
}

#[test]
fn a_device_lost_at_any_creation_takes_nothing_along() {
    for lose_at in 0..10 {
        let faults = Faults {
            lose_at: Some(lose_at),
            ..Faults::default()
        };
        let source = SimulatedSource::new(1 << 30).with_faults(faults);
        let pool = Pool::from_source(source.clone(), PoolOptions::default());
        let kept = pool.acquire("kept", 1000, STORAGE_USAGE);
        let error = program(&pool).expect_err("the device is lost");
        assert!(matches!(error, PoolError::DeviceLost { .. }), "{error}");
        let error = pool.acquire("later", 1000, STORAGE_USAGE).map(drop);
        assert!(matches!(error, Err(PoolError::DeviceLost { .. })));
        let stats = pool.stats();
        assert!(stats.identities_hold(), "{stats}");
        assert_eq!(source.buffers(), u64::from(kept.is_ok()));
        drop(kept);
        assert_eq!(source.buffers(), 0);
    }
}

#[test]
fn a_million_operations_on_eight_threads() {
    const THREADS: u64 = 8;
    const OPERATIONS: u64 = 125_000;
    let source = SimulatedSource::new(1 << 30);
    let pool = Pool::from_source(source.clone(), PoolOptions::default());
    std::thread::scope(|scope| {
        // Every thread hands some of its leases to the next, which drops them.
        let (senders, receivers): (Vec<_>, Vec<_>) = (0..THREADS).map(|_| mpsc::channel()).unzip();
        for (thread, received) in (0..THREADS).zip(receivers) {
            let next: mpsc::Sender<Lease<SimulatedBuffer>> =
                senders[(thread as usize + 1) % THREADS as usize].clone();
            let pool = &pool;
            scope.spawn(move || {
                let mut state = thread + 1;
                let mut held: Vec<Lease<SimulatedBuffer>> = Vec::new();
                for operation in 0..OPERATIONS {
                    state = state
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1);
                    let bytes = 1 + (1 << (8 + (state >> 33) % 12)) + (state >> 50) % 200;
                    held.push(pool.acquire("soak", bytes, STORAGE_USAGE).expect("lends"));
                    if held.len() > 20 {
                        let lease = held.swap_remove((state >> 40) as usize % 20);
                        if operation % 5 == 0 {
                            // The next thread may be done already.
                            drop(next.send(lease));
                        }
                    }
                    drop(received.try_recv());
                    if operation % 10_000 == 0 {
                        let stats = pool.stats();
                        assert!(stats.identities_hold(), "{stats}");
                    }
                    if operation % 50_000 == 0 {
                        pool.trim();
                    }
                }
            });
        }
    });
    let stats = pool.stats();
    assert!(stats.identities_hold(), "{stats}");
    assert_eq!(
        (stats.acquires, stats.leases.current),
        (THREADS * OPERATIONS, 0)
    );
    assert!(stats.hit_rate() > 0.9, "{stats}");
    drop(pool);
    assert_eq!(source.buffers(), 0);
}

/// Panics when it is asked for the `at`-th time, whatever it is asked.
#[derive(Debug)]
struct Panicking {
    asked: AtomicU32,
    at: u32,
}

impl Panicking {
    fn ask(&self) {
        if self.asked.fetch_add(1, Ordering::Relaxed) == self.at {
            panic!("on purpose: the policy panics");
        }
    }
}

impl Policy for Panicking {
    fn buffer_bytes(&self, requested_bytes: u64) -> u64 {
        self.ask();
        requested_bytes
    }

    fn keeps(&self, _: u64) -> bool {
        self.ask();
        true
    }

    fn limits(&self, _: &Usage) -> Limits {
        self.ask();
        Limits::NONE
    }
}

#[test]
fn a_policy_that_panics_panics_its_caller_and_nothing_else() {
    for at in 0..20 {
        let source = SimulatedSource::new(1 << 30);
        let policy = Panicking {
            asked: AtomicU32::new(0),
            at,
        };
        let pool = Pool::from_source(source.clone(), PoolOptions::default().with_policy(policy));
        let mut panics = 0;
        for round in 0..10 {
            let attempt = std::panic::AssertUnwindSafe(|| {
                // The end of a window asks, too.
                (0..64).for_each(|_| pool.maintain());
                pool.acquire("any", 1000 + round, STORAGE_USAGE).map(drop)
            });
            panics += u32::from(std::panic::catch_unwind(attempt).is_err());
            let stats = pool.stats();
            assert!(
                stats.identities_hold() && stats.leases.current == 0,
                "{stats}"
            );
        }
        assert_eq!(panics, 1, "asked {at} times");
        assert_eq!(pool.stats().held_bytes.current, source.bytes());
        drop(pool);
        assert_eq!(source.buffers(), 0);
    }
}

#[test]
fn a_budget_may_be_lowered_below_what_is_live() {
    let pool = Pool::from_source(SimulatedSource::new(1 << 30), PoolOptions::default());
    let lend = || pool.acquire("any", 1 << 20, STORAGE_USAGE);
    let mut leases: Vec<_> = (0..8).map(|_| lend().expect("no budget yet")).collect();
    leases.truncate(6);
    pool.set_budget_bytes(Some(3 << 20));
    let stats = pool.stats();
    assert_eq!(
        (stats.free.current, stats.leases.current),
        (0, 6),
        "{stats}"
    );
    assert!(matches!(
        lend(),
        Err(PoolError::BudgetExceeded {
            budget_bytes: 3_145_728,
            ..
        })
    ));
    // What comes back does not stay until there is room.
    leases.truncate(3);
    let stats = pool.stats();
    assert_eq!(stats.held_bytes.current, 3 << 20, "{stats}");
    assert!(lend().is_err());
    leases.truncate(2);
    assert!(lend().is_ok());
    pool.set_budget_bytes(None);
    let more: Vec<_> = (0..20)
        .map(|_| lend().expect("no budget any more"))
        .collect();
    drop((leases, more));
    assert!(pool.stats().identities_hold());
}

#[test]
fn out_of_memory_is_retried_once_everything_cached_is_given_up() {
    let faults = Faults {
        fail_at: Some(1),
        fail_times: 1,
        ..Faults::default()
    };
    let source = SimulatedSource::new(1 << 30).with_faults(faults);
    let pool = Pool::from_source(source, PoolOptions::default());
    drop(pool.acquire("cached", 1 << 20, STORAGE_USAGE));
    let lease = pool
        .acquire("needed", 8 << 20, STORAGE_USAGE)
        .expect("recovers");
    let stats = pool.stats();
    assert!(stats.identities_hold(), "{stats}");
    assert_eq!((stats.evictions.out_of_memory, stats.recoveries), (1, 1));
    assert_eq!(stats.held_bytes.current, lease.buffer_bytes());
}

#[test]
fn out_of_memory_for_good_is_a_typed_error_and_leaves_the_pool_whole() {
    // Whichever creation fails for good, the ones before it work, and so do those after memory is back.
    for fail_at in 0..6 {
        let faults = Faults {
            fail_at: Some(fail_at),
            fail_times: 2,
            ..Faults::default()
        };
        let source = SimulatedSource::new(1 << 30).with_faults(faults);
        let pool = Pool::from_source(source, PoolOptions::default());
        let mut leases = Vec::new();
        let mut failed = 0;
        for i in 0..6u64 {
            match pool.acquire("a", (i + 1) << 20, STORAGE_USAGE) {
                Ok(lease) => leases.push(lease),
                Err(PoolError::OutOfMemory {
                    requested_bytes,
                    leased_bytes,
                    report,
                    ..
                }) => {
                    assert!(requested_bytes >= (i + 1) << 20);
                    let live: u64 = leases.iter().map(Lease::buffer_bytes).sum();
                    assert_eq!(leased_bytes, live);
                    assert_eq!(report.stats.leases.current, leases.len() as u64);
                    failed += 1;
                }
                Err(other) => panic!("{other}"),
            }
            let stats = pool.stats();
            assert!(stats.identities_hold(), "{stats}");
            assert_eq!(stats.leases.current, leases.len() as u64);
        }
        assert_eq!(failed, 1);
        drop(leases);
        let stats = pool.stats();
        assert_eq!((stats.leases.current, stats.creates), (0, 5));
    }
}
